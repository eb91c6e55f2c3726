"""Times training steps, from the textbook's to ours, and the use of what was trained, beside a matrix product.

python benchmarks/training.py            prints tables, writes results/training/<kind of machine>.json and a picture
python benchmarks/training.py --quick    small sizes, for a look; what it writes goes to build/

Takes minutes. MNIST, if $CAPSNET_DATA or the cache has it, serves to time a first step. The measurement is
`capsnet.benchmarks.training`, which `capsnet bench` runs too.
"""

from running import run

if __name__ == "__main__":
    run("training", __doc__)
