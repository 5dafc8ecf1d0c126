"""
One rollout's evidence: scrapes in, verdicts out. The entry point of this package.

A scrape goes through `Counters` (increments), `Streams` (what is counted for which gate), `Watch` (is a margin broken? after every scrape) and,
once a minute, `Proof` (is every margin kept? read at gates). `dump` and `load` carry all of it as JSON, so that the evidence can lie in
the audit log and go on from there with the same numbers, bit for bit. Its one rule: everything used for a block of data was fixed
before that block, except how many requests it holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.core.evidence.config import EngineConfig, Gate, MeanMargin, Need, QuantileLimit, QuantileMargin
from controller.core.evidence.increments import Counters, Problem, Step, Vector, increments_of
from controller.core.evidence.observed import Observed, observe
from controller.core.evidence.overdispersion import PrivateNoise, prior_variance
from controller.core.evidence.proof import CARRIED, FRESH, WHOLE, Proof
from controller.core.evidence.rates import Array
from controller.core.evidence.reference import Reference
from controller.core.evidence.streams import Streams, compile_streams
from controller.core.evidence.verdict import Finding, Ruling, Verdict
from controller.core.evidence.watch import Breach, Closed, Watch

SHADOW_WEIGHT = 0.1
"""Part of the starts that a first, mirrored phase gets: nobody is exposed while its evidence grows a little more slowly."""

FIRST_WEIGHT = 1.5
"""Starts of the first phase that exposes users, where each later one has 1: most faults show as soon as there are users."""

SUSPICION = 0.0
"""Log of the combined evidence of a breach above which no gate opens."""

DISSENT = -1.0
"""This phase's own evidence must not say the opposite of what earlier phases carried in: more than a third of its stake is left."""

LEANING = -0.5
"""A leaning gate opens unless the rollout's data have cost its stake more than this: where about as many events were seen as the limit allows."""

BLOCKS_MAX = 5.0
"""Longer gaps than this between scrapes count as so many blocks."""


DRIFT, DRIFT_EVENTS = math.log(2.5), 20.0
"""Thresholds are fixed anew when the odds of the baseline's share beyond one of them have moved by more than this factor, on so many events."""


class Engine:
    """The evidence of one rollout; mutable, owned by whoever feeds it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.counters = Counters(config)
        self.reference = Reference(config)
        self.watch = Watch(config)
        self.proof = Proof(config)
        self.noise = PrivateNoise(self.watch.nq + self.watch.nm)
        self.phase = -1
        self.furthest = -1
        self.breach: Breach | None = None
        self.streams: Streams | None = None
        self.compiled_from: Array | None = None
        columns = len(config.columns)
        self.pending: Array = np.zeros((2, columns))
        self.pending_scrapes = 0.0
        self.tally: Array = np.zeros((2, columns))
        self.share: Array = np.full(self.watch.nq + self.watch.nm, 0.5)
        """The baseline's recent exceedance shares (absolute, then relative quantiles), as of the last block's end."""
        self._both: Array = np.zeros((2, columns + 1))
        averages = [g for g in config.gates if isinstance(g, MeanMargin)]
        self._mean_count = np.array([config.column(g.count) for g in averages], dtype=np.intp)
        self._mean_amount = np.array([config.column(g.amount) for g in averages], dtype=np.intp)
        self._minute = config.block_scrapes
        self._margin_q: Array = np.array([g.q for g in config.gates if isinstance(g, QuantileMargin)])

    def learn(self, t: float, cand: Sequence[float] | Vector, base: Sequence[Sequence[float] | Vector]) -> None:
        """
        Baseline-only history before the first phase.

        Args:
            t: Seconds of the last scrape of the history.
            cand: The candidate's counters then.
            base: The baseline's cumulative counters, oldest first.

        Scrapes with a value that is not a finite, non-negative number are left out, like missed ones.

        Raises:
            ValueError: Scrapes of different lengths, or not of the configured columns.
        """
        cumulative = np.asarray(base, dtype=np.float64)
        if cumulative.ndim != 2 or cumulative.shape[1] != len(self.config.columns):
            raise ValueError(f"history needs {len(self.config.columns)} columns in every scrape")
        usable = cumulative[np.all(np.isfinite(cumulative) & (cumulative >= 0), axis=1)]
        if len(usable) > 1:
            self.reference.learn(increments_of(usable))
        self.counters.step(t, cand, cumulative[-1])

    def learn_increments(self, increments: Sequence[Sequence[float]], scrapes_each: float) -> None:
        """
        Baseline-only history that is in increments already.

        Args:
            increments: Oldest first, each of all columns, finite and not negative.
            scrapes_each: Length of an increment, in scrape intervals.

        Raises:
            ValueError: Other columns, or a value that is no count.
        """
        table = np.asarray(increments, dtype=np.float64).reshape(len(increments), -1)
        if not len(table):
            return
        if table.shape[1] != len(self.config.columns) or not (np.isfinite(table).all() and table.min() >= 0):
            raise ValueError(f"history needs {len(self.config.columns)} finite, non-negative columns in every increment")
        self.reference.learn(table, scrapes_each)
        if self.phase >= 0:
            self._compile()

    def enter(self, phase: int) -> None:
        """A phase of the plan begins; the next scrape is its first."""
        if not 0 <= phase < len(self.config.phases):
            raise ValueError(f"no phase {phase}, the plan has {len(self.config.phases)}")
        before = self.config.phases[self.phase] if self.phase >= 0 else None
        self.proof.begin(carry=before is not None and before.shadow and phase == self.phase + 1)
        if phase > self.furthest:
            self.watch.begin(self._starts(phase), alone=self.config.phases[phase].alone)
        else:
            self.watch.again()
        self.phase, self.furthest = phase, max(self.furthest, phase)
        self.reference.enter()
        self._compile()
        self.pending[:] = 0
        self.pending_scrapes = 0.0
        self.tally[:] = 0

    def observe(self, t: float, cand: Sequence[float] | Vector, base: Sequence[float] | Vector) -> Breach | Problem | None:
        """
        One scrape of both arms at one timestamp.

        Args:
            t: Seconds, rising; an older scrape is ignored.
            cand, base: Cumulative counters in the order of the configured columns.

        Returns:
            A breach (it stays one from then on), a Problem that changed nothing, or None.
        """
        step = self.counters.step(t, cand, base)
        if isinstance(step, Problem):
            return step
        if step is None or self.phase < 0:
            return self.breach
        return self.feed(step)

    def feed(self, step: Step) -> Breach | None:
        """
        One step that is in increments already: finite, not negative, of all columns; buckets cumulative over their edges.

        Returns:
            A breach; it stays one from then on, and later steps are not judged.
        """
        if self.breach is not None:
            self.tally += np.stack([step.cand, step.base])  # nothing is judged any more, but the numbers shown go on
            return self.breach
        if self.streams is None or not self.streams.ready:
            self._compile()
        self._judge(step)
        return self.breach

    @property
    def hindrance(self) -> str:
        """Why no gate at all may open now, in a few words; "" if nothing stands in the way of all of them."""
        if self.phase < 0:
            return "no phase has begun"
        if not self.proof.calm:
            return "incident: the baseline itself is beyond a limit"
        if bool((self.watch.combined() > SUSPICION).any()):
            return "suspicion: a breach is likelier than not"
        return ""

    @property
    def may_proceed(self) -> tuple[bool, str]:
        """Whether every gate has earned its pass, and the sentence why not."""
        if hindrance := self.hindrance:
            return False, hindrance
        # early phases prove a wider margin; what is beyond the plan's own all the same does not go on
        short = [s.gate.name for s in self._standings() if not s.met or self._over(s, self._observed(s.gate, look_closely=False))]
        return (not short), ("proved" if not short else "not enough evidence: " + ", ".join(short))

    def _standings(self) -> list["_Standing"]:
        """How far each gate has come in this phase."""
        rule = self.config.phases[self.phase]
        needed = math.log(1 / rule.alpha)
        layers = self.proof.log_e(rule.multiple)
        wider = layers[CARRIED] if rule.wider is None else self.proof.log_e(rule.wider)[CARRIED]
        found = []
        for i, gate in enumerate(self._ordered):
            need = self.need(gate)
            have, asked = float(layers[CARRIED, i]), needed
            if need is Need.LEANING:
                have, asked = float(layers[WHOLE, i]), LEANING
            elif need is Need.NOTHING:
                asked = -math.inf
            found.append(
                _Standing(
                    gate=gate,
                    need=need,
                    met=need is Need.NOTHING or (have >= asked and bool(layers[FRESH, i] >= DISSENT)),
                    have=have,
                    fresh=float(layers[FRESH, i]),
                    needed=asked,
                    wider=rule.wider is not None and bool(wider[i] >= needed),
                )
            )
        return found

    def _over(self, standing: "_Standing", seen: Observed) -> bool:
        """Nothing is called proven whose interval, or in the phase that proves the plan's own limit whose estimate, lies beyond it."""
        last = standing.need is Need.PROOF and self.config.phases[self.phase].multiple == 1
        return seen.beyond or (last and seen.value > seen.limit)

    def need(self, gate: Gate) -> Need:
        """What a gate asks for in this phase: alone at 100 % the last step lies behind, so the data need only not speak against it."""
        need = self.config.need(gate)
        alone = self.phase >= 0 and self.config.phases[self.phase].alone
        return Need.LEANING if alone and need is Need.PROOF and not self.config.evidence_required else need

    def verdict(self) -> Verdict:
        """The ruling with every metric's numbers."""
        findings = self.findings()
        if self.breach is not None:
            b = self.breach
            reason = f"{b.gate} is beyond its margin ({b.rung}): evidence e^{b.log_e:.1f}, needed e^{b.log_needed:.1f}"
            return Verdict(
                ruling=Ruling.ROLL_BACK,
                reason=reason,
                phase=self.phase,
                findings=findings,
                gate=b.gate,
                rung=b.rung,
                log_e=b.log_e,
            )
        proceed, reason = self.may_proceed
        ruling = Ruling.PROCEED if proceed else Ruling.HOLD
        return Verdict(ruling=ruling, reason=reason, phase=self.phase, findings=findings)

    # one scrape ------------------------------------------------------------------------------------------------------------------

    def _judge(self, step: Step) -> None:
        assert self.streams is not None
        both = self._both
        both[0, :-1], both[1, :-1] = step.cand, step.base
        self.tally += both[:, :-1]
        self.pending += both[:, :-1]
        self.pending_scrapes += step.scrapes
        closed = self._closed() if self.pending_scrapes >= self._minute - 1e-6 else None
        events, trials = self.streams.both(both.ravel())
        self.breach = self.watch.step(events, trials, max(self._minute / step.scrapes, 1.0), closed, self.reference)
        self.reference.advance(step.base, step.scrapes)
        if closed is not None:
            self._turn(closed)

    def _closed(self) -> Closed:
        """The block that this scrape completes."""
        assert self.streams is not None
        block = np.append(self.pending, np.zeros((2, 1)), axis=1)
        per_block = max(self._minute / self.pending_scrapes, 1 / BLOCKS_MAX)
        return Closed(counts=self.streams.count(block), amounts=self._amounts(block), per_block=per_block)

    def _turn(self, closed: Closed) -> None:
        """Learn from a block that has been judged, and fix the bets for the next."""
        assert self.streams is not None
        self.proof.add(closed, self.share, self.streams, self.reference, self.noise)
        nr, relative = self.watch.nr, self.streams.at(1.0)
        pick = np.concatenate([np.arange(nr, nr + self.watch.nq), np.arange(relative.start, relative.stop)])
        xc, nc, xb, nb = closed.counts
        self.noise.add(xc[pick], nc[pick], xb[nr:], nb[nr:])
        self.reference.add_means(self.pending[1][None, :])
        self.pending[:] = 0
        self.pending_scrapes = 0.0
        if self._adrift():
            self._compile()
        else:
            self._look()

    def _adrift(self) -> bool:
        """
        Whether the baseline's quantiles have moved away from the thresholds of the comparisons.

        A phase that begins in a rush hour would else compare tails that hardly anybody reaches once it is over, and prove nothing. What is
        looked at lies in the past, so the next block's thresholds are still fixed before it.
        """
        assert self.streams is not None
        first = self.watch.nr + self.watch.nq
        events, trials = self.streams.baseline(np.append(self.reference.recent, 0.0))
        x, n = events[first:], trials[first:]
        asked = 1 - self._margin_q
        known = n * asked * (1 - asked) >= DRIFT_EVENTS
        moved = np.abs(np.log((x + 0.25) / (n - x + 0.25)) - np.log(asked / (1 - asked))) > DRIFT
        return bool((known & moved).any())

    def _look(self) -> None:
        """Take the baseline's latest shares for the bets of the next block."""
        assert self.streams is not None
        nr = self.watch.nr
        events, trials = self.streams.baseline(np.append(self.reference.recent, 0.0))
        self.share = np.clip((events[nr:] + 0.25) / (trials[nr:] + 0.5), 1e-5, 0.98)
        self.bet()

    def bet(self) -> None:
        """Fix the bets of the block from what is known."""
        self.watch.bet(self.share, self.reference, self.noise)

    def _amounts(self, both: Array) -> Array:
        count, amount = self._mean_count, self._mean_amount
        return np.stack([both[0, count], both[0, amount], both[1, count], both[1, amount]])

    def recompile(self, recent: Array) -> Streams:
        """Fix the thresholds from a distribution of the baseline."""
        self.compiled_from = recent.copy()
        self.streams = compile_streams(self.config, recent)
        self.watch.use(self.streams)
        return self.streams

    def _compile(self) -> None:
        streams = self.recompile(self.reference.recent)
        noise = np.zeros(self.watch.nq + self.watch.nm)
        names = [h.name for h in self.config.histograms]
        graded = [g for g in self._ordered if isinstance(g, QuantileLimit | QuantileMargin)]
        for i, g in enumerate(graded):
            noise[i] = self.reference.noise[names.index(g.histogram)]
        self.noise.enter(prior_variance(noise, streams.density))
        self._look()

    def _starts(self, phase: int) -> float:
        """The phase's part of the starts; those of all phases sum to 1."""
        phases = self.config.phases
        shadow = 1 if phases[0].shadow and len(phases) > 1 else 0
        if phase < shadow:
            return SHADOW_WEIGHT
        live = [FIRST_WEIGHT] + [1.0] * (len(phases) - shadow - 1)
        return (1 - shadow * SHADOW_WEIGHT) * live[phase - shadow] / sum(live)

    @property
    def _ordered(self) -> list[Gate]:
        return self.watch.gates

    # numbers for people ------------------------------------------------------------------------------------------------------------

    def findings(self) -> tuple[Finding, ...]:
        """Every gate's numbers in the phase that has begun."""
        if self.phase < 0:
            return ()
        rule = self.config.phases[self.phase]
        watched = self.watch.log_e + self.watch.log_weight
        found = []
        for i, standing in enumerate(self._standings()):
            seen = self._observed(standing.gate)
            missing: float | None = None
            if standing.have >= standing.needed:
                missing = 0.0
            elif standing.fresh > 0.05 and seen.requests > 0:
                # the slope of this phase: what was carried into it came from other requests
                missing = seen.requests * (standing.needed - standing.have) / standing.fresh
            found.append(
                Finding(
                    gate=standing.gate.name,
                    need=standing.need,
                    met=standing.met and not self._over(standing, seen),
                    beyond=seen.beyond,
                    multiple=rule.multiple,
                    acceptable=standing.wider and not seen.beyond,
                    observed=seen.value,
                    baseline=seen.baseline,
                    limit=seen.limit,
                    interval=seen.interval,
                    requests=seen.requests,
                    requests_baseline=seen.requests_baseline,
                    log_e_breach=float(np.logaddexp.reduce(watched[:, i] - self.watch.threshold)),
                    log_e_proof=standing.have,
                    log_e_needed=standing.needed,
                    missing=missing,
                )
            )
        return tuple(found)

    def _observed(self, gate: Gate, *, look_closely: bool = True) -> Observed:
        return observe(gate, self.config, self.tally, self.reference, look_closely=look_closely)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """A gate, what it needs, how much it has in all and from this phase (log e-values), and whether the step could be accepted unproven."""

    gate: Gate
    need: Need
    met: bool
    have: float
    fresh: float
    needed: float
    wider: bool
