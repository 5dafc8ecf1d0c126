"""
What a plan would do, before it is trusted: invented traffic through the gates that run live.

`baseline` says what the baseline does today (given in a few numbers, or read from the metric source), `outlook` computes from it
what each phase can prove and catch, `simulate` plays whole rollouts on traffic that `generate` draws, and `backtest` puts the
plan's gates on recorded traffic. Its one rule: no statistics of its own. Evidence, verdicts and decisions are those of
`controller.core`; this package only invents time and traffic.
"""
