"""Reinforcement learning with a recurrent policy, watched: rollouts in which episodes end and begin anew.

The environment is a corridor. A sign at its entrance says left or right, and at the far end, five to nine steps later,
the agent must turn as the sign said: it is rewarded for a right turn and punished for a wrong one. 16 corridors are
walked side by side; where an episode ends the state of the recurrent cell is set to zero, ``state * (1 - done)``.

Each episode counts as a sequence of its own: a rollout of 16 rows and 32 steps holds some 90, the longest of nine
steps. As the agent learns, what a gradient keeps on its way from the turn back to the sign grows from a hundredth to
more than a tenth.

python examples/rl_loop.py             some seconds
"""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lyapunov import LyapunovMonitor
from lightning_lyapunov.reading.words import factor

CORRIDORS, STEPS, HIDDEN = 16, 32, 32
"""Environments side by side; steps of a rollout, some four episodes of each; hidden units."""
SHORTEST, LONGEST, NOISE = 5, 9, 0.1
"""Steps of an episode; standard deviation of what is seen."""
DISCOUNT, TRACE, ENTROPY = 0.95, 0.95, 0.01
"""Of rewards to come; of advantages to come (λ of generalised advantage estimation); reward for exploring."""


class Corridors:
    """Environments side by side, each with a sign, a length and a place."""

    def __init__(self) -> None:
        self.sign = torch.zeros(CORRIDORS, dtype=torch.long)
        self.length = torch.zeros(CORRIDORS, dtype=torch.long)
        self.place = torch.zeros(CORRIDORS, dtype=torch.long)
        self._begin(torch.ones(CORRIDORS, dtype=torch.bool))

    def _begin(self, where: Tensor) -> None:
        self.sign = torch.where(where, torch.randint(2, (CORRIDORS,)), self.sign)
        self.length = torch.where(where, torch.randint(SHORTEST, LONGEST + 1, (CORRIDORS,)), self.length)
        self.place = torch.where(where, 0, self.place)

    def look(self) -> Tensor:
        """What is seen ``(CORRIDORS, 3)``: the sign, at the entrance only, whether this is the far end, and noise."""
        seen = NOISE * torch.randn(CORRIDORS, 3)
        seen[:, :2] += nn.functional.one_hot(self.sign, 2) * (self.place == 0).unsqueeze(1)
        seen[:, 2] += self.place == self.length - 1
        return seen

    def walk(self, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards and ends of episodes, ``(CORRIDORS,)``; a turn counts at the far end only."""
        done = self.place == self.length - 1
        rewards = torch.where(turns == self.sign, 1.0, -1.0) * done
        self.place += 1
        self._begin(done)
        return rewards, done.float()


class Agent(nn.Module):
    """A recurrent cell, what to do next, and what is to be expected of it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.actor, self.critic = nn.GRUCell(3, HIDDEN), nn.Linear(HIDDEN, 2), nn.Linear(HIDDEN, 1)

    def forward(self, seen: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(B, 2)``, values ``(B,)`` and the next state ``(B, HIDDEN)``."""
        state = self.cell(seen, state)
        return self.actor(state), self.critic(state).squeeze(1), state


class Rollout(NamedTuple):
    """So many steps of all environments, each ``(STEPS, CORRIDORS)``."""

    log_probability: Tensor
    entropy: Tensor
    values: Tensor
    rewards: Tensor
    done: Tensor


def roll_out(agent: Agent, corridors: Corridors, state: Tensor) -> tuple[Rollout, Tensor, Tensor]:
    """Walk on: what happened, the state after it, and what is expected from there, ``(CORRIDORS,)``."""
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(STEPS):
        logits, values, state = agent(corridors.look(), state)
        choice = torch.distributions.Categorical(logits=logits)
        turns = choice.sample()
        rewards, done = corridors.walk(turns)
        state = state * (1 - done).unsqueeze(1)  # an episode that begins knows nothing of the last one
        steps.append((choice.log_prob(turns), choice.entropy(), values, rewards, done))
    with torch.no_grad():
        _, ahead, _ = agent(corridors.look(), state)
    return Rollout(*map(torch.stack, zip(*steps, strict=True))), state.detach(), ahead


def advantages_of(rollout: Rollout, ahead: Tensor) -> Tensor:
    """How much better it went than was expected, ``(STEPS, CORRIDORS)`` (Schulman et al., arXiv:1506.02438, eq. 16)."""
    advantages = torch.zeros_like(rollout.rewards)
    advantage = torch.zeros(CORRIDORS)
    for t in reversed(range(STEPS)):
        goes_on, value = 1 - rollout.done[t], rollout.values[t].detach()
        surprise = rollout.rewards[t] + DISCOUNT * goes_on * ahead - value
        advantage = surprise + DISCOUNT * TRACE * goes_on * advantage
        advantages[t], ahead = advantage, value
    return advantages


def loss_of(rollout: Rollout, ahead: Tensor) -> Tensor:
    """That of the advantage actor-critic (Mnih et al., arXiv:1602.01783)."""
    advantages = advantages_of(rollout, ahead)
    returns = advantages + rollout.values.detach()
    gain = (advantages * rollout.log_probability + ENTROPY * rollout.entropy).mean()
    return 0.5 * (returns - rollout.values).square().mean() - gain


def main() -> None:
    """Walk, learn, and measure along the walks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half the training")
    args = parser.parse_args()
    updates, every = (60, 10) if args.quick else (120, 10)

    logging.getLogger("lightning_lyapunov").setLevel(logging.ERROR)  # what it would say as it happens is printed below
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    torch.manual_seed(0)
    agent, corridors = Agent(), Corridors()
    optimizer = torch.optim.Adam(agent.parameters(), lr=5e-3)
    state = torch.zeros(CORRIDORS, HIDDEN)

    print("updates   right turns    λ_max   gradient over an episode   episodes measured, of those seen")
    with LyapunovMonitor(agent, scorer=None) as monitor:  # the pretrained scorer knows no reinforcement learning
        for update in range(updates + 1):
            is_due = update % every == 0
            with monitor.record() if is_due else nullcontext():  # copies what the cell is given
                rollout, state, ahead = roll_out(agent, corridors, state)
            if is_due and monitor.measure(update, always=update == updates):
                last, right = monitor.history[-1], (rollout.rewards > 0).sum() / rollout.done.sum()
                m = last.metrics
                gradient = f"{factor(m['gradient_gain'])}, at most {factor(m['gradient_growth'])}"
                seen = f"{last.sequences} of {last.seen}, the longest of {last.length} steps"
                print(f"{update:>7}   {right:>11.1%}   {m['max']:+6.2f}   {gradient:<25}  {seen}")
            loss = loss_of(rollout, ahead)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    print()
    for finding in monitor.findings:
        print(f"  [{finding.state}] {finding.text}")


if __name__ == "__main__":
    main()
