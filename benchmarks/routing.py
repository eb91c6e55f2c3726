"""Times routing, forward and backward, by every path; measures its memory; lets the work grow.

python benchmarks/routing.py            prints tables, writes results/routing/<kind of machine>.json and a picture
python benchmarks/routing.py --quick    small sizes, for a look; what it writes goes to build/

Takes many minutes. The measurement is `capsnet.benchmarks.routing`, which `capsnet bench` runs too.
"""

from running import run

if __name__ == "__main__":
    run("routing", __doc__)
