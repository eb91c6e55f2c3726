"""Times training steps, from the textbook's to ours, and the use of what was trained, beside a matrix product.

python benchmarks/training.py            prints tables, writes results/training/cpu.json, or cuda.json, and a picture
python benchmarks/training.py --quick    small sizes, for a look; what it writes goes to build/

Takes minutes. The measurement is `capsnet.benchmarks.training`, which `capsnet bench` runs too.
"""

from running import run

if __name__ == "__main__":
    run("training", __doc__)
