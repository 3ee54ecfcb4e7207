"""For processes of tests that ask for no steady numbers: each graph is timed for a tenth of the seconds."""

from edgekd.core.benchmark import benchmark_interleaved

benchmark_interleaved.__kwdefaults__["min_seconds"] = 0.2
