"""gsocks beside the other proxies: the same load, the same machine, the same minute.

make bench          all figures, 5 rounds, 35 to 60 minutes
make bench-quick    the same in small, 2 to 4 minutes: shows that it works, not how fast
make bench-compare  two builds of gsocks beside each other, about 3 minutes (compare/)
make bench-counts   instructions beside their budgets, 2 minutes (budgets.py)

contenders/   who is measured, and how each is set up
load/         what they have to carry
link/         100 ms of distance
figures/      what is measured, with its goal
stage.py      one contender, started for one measurement, with its CPU time and memory
signals.py    a signal ends a run, whenever it comes
run.py        all of them, in rounds: A B C A B C
summary.py    medians, spreads, ratios, goals met
report.py     the tables; plot.py the bars; document.py writes them into docs/benchmarks.md
"""
