#!/usr/bin/env python3
"""docs/figures.py: draws trajectory.svg, voronoi.svg and ranks.svg for docs/codec.md.

Works from the definitions in hyperfs-format(5), not from the codec's sources. The same bytes on every
run with the versions of numpy and matplotlib in bench/requirements.txt.
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "hyperfs"
import matplotlib.pyplot as plt
import numpy as np

DOCS = Path(__file__).resolve().parent
COLOURS = ["tab:red", "tab:blue", "tab:green", "tab:orange"]
PALE = ["#f6c9c9", "#c9d9f0", "#c9e6c9", "#fbe0c0"]
PHASES = ["0", "$b_1/2$", "$b_2/2$", "$(b_1+b_2)/2$"]  # by number, c0 + 2 c1
SMALL = 91  # points of the trajectory in the first two pictures


def reduced(u, z):
    """Gauss's reduction of the lattice of the multiples of (1, z) modulo u."""
    a, b = np.array([1, z]), np.array([0, u])
    while True:
        if a @ a > b @ b:
            a, b = b, a
        q = round((a @ b) / (a @ a))
        if q == 0:
            return a, b if a @ b >= 0 else -b
        b = b - q * a


def best_winding(u):
    return max(range(1, u // 2 + 1), key=lambda z: (lambda a: a @ a)(reduced(u, z)[0]))


def save(figure, name):
    figure.savefig(DOCS / name, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def wrapped(v):
    """Into [-1/2, 1/2)."""
    return (np.asarray(v) + 0.5) % 1 - 0.5


def wind(axes, z, phase, colour, **style):
    """The line t (1, z) + phase on the torus, cut where it leaves the square."""
    t = np.linspace(0, 1, 4001)
    x, y = wrapped(t + phase[0]), wrapped(z * t + phase[1])
    cut = np.flatnonzero((np.abs(np.diff(x)) > 0.5) | (np.abs(np.diff(y)) > 0.5)) + 1
    axes.plot(np.insert(x, cut, np.nan), np.insert(y, cut, np.nan), color=colour, **style)


def draw_trajectory():
    u, z = SMALL, best_winding(SMALL)
    a, b = reduced(u, z)
    theta = np.arange(u)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2))
    wind(left, z, (0, 0), COLOURS[0], lw=0.8, alpha=0.5)
    x, y = wrapped(theta / u), wrapped(theta * z / u)
    left.plot(x, y, "o", color=COLOURS[0], ms=4)
    for k in (0, 1, 2, 3, 4, 6, 7):
        left.annotate(str(k), (x[k], y[k]), xytext=(4, 3) if k else (-10, -9), fontsize=9,
                      textcoords="offset points")
    for v, name, beside in ((a, "$b_1$", (5, -12)), (b, "$b_2$", (-18, -10))):
        left.annotate("", v / u, (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.6})
        left.annotate(name, v / u, xytext=beside, textcoords="offset points", fontsize=12)
    left.set_title(f"phase 0: {u} points of a line\nthat winds {z} times")
    for k in range(4):
        phase = ((k & 1) * a + (k >> 1) * b) / (2 * u)
        wind(right, z, phase, "grey", lw=0.4, alpha=0.4)
        right.plot(wrapped(theta / u + phase[0]), wrapped(theta * z / u + phase[1]), "o",
                   color=COLOURS[k], ms=3.5, label=f"phase {k}: {PHASES[k]}")
    right.set_title(f"four phases: the same lattice\nat half the spacing, {4 * u} points")
    for axes in (left, right):
        axes.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), aspect="equal", xticks=(-0.5, 0, 0.5),
                 yticks=(-0.5, 0, 0.5))
    figure.legend(*right.get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
    figure.subplots_adjust(bottom=0.14, wspace=0.2)
    save(figure, "trajectory.svg")


def cell(a, b):
    """Corners of the Voronoi cell of the origin in the lattice of a reduced basis: the
    circumcentres of the six triangles around it."""
    around = [a, b, b - a, -a, -b, a - b]
    corners = []
    for p, q in zip(around, around[1:] + around[:1]):
        corners.append(np.linalg.solve(np.array([p, q], float), [p @ p / 2, q @ q / 2]))
    return np.array(corners)


def draw_voronoi():
    a, b = reduced(SMALL, best_winding(SMALL))
    scale = math.sqrt(2 / math.sqrt(3) * SMALL)  # d, in the units of a and b
    a, b = a / scale, b / scale
    fine, coarse = cell(a, b), cell(2 * a, 2 * b)
    figure, axes = plt.subplots(figsize=(7.5, 5.6))
    reach = range(-8, 9)
    for m in reach:
        for n in reach:
            p, k = m * a + n * b, m % 2 + 2 * (n % 2)
            axes.fill(*(fine + p).T, color=PALE[k], ec="white", lw=1)
            axes.plot(*p, "o", color=COLOURS[k], ms=4)
    axes.fill(*coarse.T, fill=False, ec=COLOURS[0], lw=2, zorder=3)
    axes.annotate("Voronoi cell of the origin\nin phase 0 alone", coarse[np.argmin(coarse[:, 1])],
                  xytext=(-2.4, -2.05), ha="center", fontsize=10,
                  arrowprops={"arrowstyle": "->"}, bbox={"fc": "white", "ec": "none", "alpha": 0.85})
    x = 1.42 * a + 0.58 * b
    for k in range(4):
        shift = (k & 1) * a + (k >> 1) * b
        p = min((2 * i * a + 2 * j * b + shift for i in reach for j in reach),
                key=lambda p: (p - x) @ (p - x))
        axes.plot(*zip(x, p), color=COLOURS[k], lw=2, zorder=4,
                  label=f"phase {k}: squared distance {(p - x) @ (p - x):.2f} $d^2$")
        axes.plot(*p, "o", color=COLOURS[k], ms=9, mec="black", zorder=5)
    axes.plot(*x, "kX", ms=10, zorder=6, label="a pair of weights")
    axes.set(xlim=(-3.6, 3.6), ylim=(-2.6, 2.6), aspect="equal", xlabel="first weight, in $d$",
             ylabel="second weight, in $d$")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2, frameon=False)
    save(figure, "voronoi.svg")


def ranked(u, z, count, phase=0):
    """The first `count` points of a phase by distance, ties by theta, in units of 1/(2u)."""
    a, b = reduced(u, z)
    reach = int(1.3 * math.sqrt(count)) // 2 * 2 + 4
    found = []
    for m in range(phase % 2 - reach, reach, 2):
        for n in range(phase // 2 - reach, reach, 2):
            x, y = m * a + n * b
            theta = (x - (m % 2) * a[0] - (n % 2) * b[0]) // 2 % u
            found.append((x * x + y * y, theta, x, y))
    return np.array([(x, y) for _, _, x, y in sorted(found)[:count]], float)


def ranks_of_gaussian(u, z, count, pairs, rms):
    """Ranks of the nearest points of phase 0 to Gaussian pairs; rms in units of d."""
    spacing = math.sqrt(2 / math.sqrt(3) * u)
    a, b = reduced(u, z)
    basis = 2 * np.array([a, b], float)
    points = ranked(u, z, count)
    place = {tuple(v): i for i, v in enumerate(np.rint(points @ np.linalg.inv(basis)).astype(int))}
    x = np.random.default_rng(1).standard_normal((pairs, 2)) * rms * spacing
    base = np.floor(x @ np.linalg.inv(basis))
    best, near = np.full(pairs, np.inf), np.zeros((pairs, 2))
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = base + corner
        distance = ((x - at @ basis) ** 2).sum(1)
        near[distance < best] = at[distance < best]
        best = np.minimum(best, distance)
    ranks = np.array([place.get(tuple(v), -1) for v in near.astype(int)])
    return ranks[ranks >= 0]


def draw_ranks():
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2))
    u, count = 159, 91
    points = ranked(u, best_winding(u), count) / math.sqrt(2 / math.sqrt(3) * u)
    shown = left.scatter(*points.T, c=np.arange(count), cmap="viridis", s=190)
    for i, p in enumerate(points):
        left.annotate(str(i), p, ha="center", va="center", fontsize=7,
                      color="white" if i < 60 else "black")
    radius = np.hypot(*points[-1])
    left.add_patch(plt.Circle((0, 0), radius + 0.8, fill=False, ls="--", color="grey"))
    left.set(aspect="equal", xlabel="first weight, in $d$", ylabel="second weight, in $d$",
             title=f"ranks of the first {count} points of phase 0")
    figure.colorbar(shown, ax=left, shrink=0.8, label="rank $i$")

    u, z, count, db, mse = 2911, 780, 2048, 23, 0.1074  # a window of mkhyperfs, nu = 8
    rms = math.sqrt(10 ** (db / 10) * mse)
    ranks = ranks_of_gaussian(u, z, count, 400_000, rms)
    share = np.bincount(ranks >> 3, minlength=count >> 3) / len(ranks)
    ratio = math.sqrt(3) / (math.pi * rms * rms)  # a rank's share falls by exp(-ratio)
    hi = np.arange(count >> 3)
    right.bar(hi, share, width=1, color="tab:blue", alpha=0.6, label="400,000 Gaussian pairs")
    right.plot(hi, (1 - math.exp(-8 * ratio)) * np.exp(-8 * ratio * hi), color="tab:red", lw=1.5,
               label=r"geometric: $\exp(-\sqrt{3}\,d^2/\pi\sigma^2)$ from rank to rank")
    right.set(yscale="log", xlim=(-1, 70), ylim=(1e-6, 1), xlabel="high byte of the rank, $i \\gg 3$",
              ylabel="share", title=f"{db} dB, {count} points a phase")
    right.legend(loc="upper right")
    figure.tight_layout()
    save(figure, "ranks.svg")


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
                            ).parse_args()
    draw_trajectory()
    draw_voronoi()
    draw_ranks()


if __name__ == "__main__":
    main()
