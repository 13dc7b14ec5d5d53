"""The evaluation of a bank, written down: ``python -m lightning_lyapunov.bank.report BANK``.

What is asked, and how it is scored, stands in :mod:`lightning_lyapunov.bank.evaluation`; here the scorer is fitted
again and again without a family or a kind of cell (``left_out``), compared with others (``tables``), and the
whole is put into words, a picture and a card.
"""
