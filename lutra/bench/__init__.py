"""Tokens per second of models with random weights, beside the roofs of this machine; no download.

How it is measured, so that the figures hold on a computer that also does other things:

* A round is a prefill, the same number of int8 operations without a model, some decoded tokens, and the same number of
  bytes read without a model, one after the other on the same threads; a rival's run too if one is named.
  Rounds alternate, so whatever slows the machine slows all of them.
* A roof lasts as long as what it is compared with.  The best of many runs of a millisecond (lutra/machine/limits.py)
  says what the machine can do while nobody disturbs it; hardly any run of a second reaches that, whoever makes it.
* The first round is thrown away: kernels are compiled in it, pages touched, threads woken.
* Printed are the median of the rounds, half their interquartile range, and the best.  A share of a roof divides medians
  by medians and bests by bests.

case.py what to measure · work.py bytes and operations · measure.py the rounds · row.py what they say
launches.py one step taken apart · curve.py steps of several rows · rival.py another engine · report.py table, JSON, CSV
"""
