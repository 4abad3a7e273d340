"""Published numbers that the simulator of RL runs is held against, and the errors they were read off with."""

# StreamRL (arXiv 2504.15930). Figure 8, samples/s, read off (to 0.1, 0.05, 0.03 for 5K, 10K, 20K)
SYSTEMS = ("verl", "colocated", "sync", "async")
FIGURE8 = {
    ("7b", "5k"): (7.98, 12.89, 16.06, 21.35), ("7b", "10k"): (4.71, 8.03, 8.80, 10.63),
    ("7b", "20k"): (2.38, 4.79, 5.07, 5.70), ("32b", "5k"): (4.14, 5.96, 6.64, 7.60),
    ("32b", "10k"): (2.89, 2.89, 3.22, 3.75), ("32b", "20k"): (1.73, 1.83, 2.14, 2.43),
    ("72b", "5k"): (2.98, 4.04, 5.77, 7.21), ("72b", "10k"): (1.73, 2.40, 3.03, 3.70),
    ("72b", "20k"): (1.11, 1.49, 1.85, 2.24),
}  # fmt: skip
BUDGET = {"7b": 32, "32b": 64, "72b": 128}  # H800s
SPLIT = {"32b": (40, 24), "72b": (80, 48)}  # Figure 10, 20K: GPUs to generate, to train
# Table 3 (72B, 20K): throughput relative to the colocated baseline
TABLE3 = {"skewness-aware scheduling": 1.08, "disaggregation and streaming": 1.23, "asynchronous": 1.48}
# Figure 2 left, 7B: generation time on 8, 16, 24, 32 GPUs; right: by sequence length 1K to 8K; relative
FIGURE2 = {16: 0.82, 24: 0.74, 32: 0.70}
FIGURE2_LENGTH = {2: (1.95, 1.6), 4: (3.8, 2.75), 8: (8.0, 5.0)}  # generation, training
# Figure 9 (20K), generation time relative to random placement and order: with the ranker, with true lengths
FIGURE9 = {"7b": (0.90, 0.815), "32b": (0.82, 0.67), "72b": (0.785, 0.69)}
# Figure 10 (20K), relative to generation on half of the GPUs: training on half; generation and training on SPLIT
FIGURE10 = {"32b": (0.73, 0.80, 0.73), "72b": (0.58, 0.81, 0.83)}
# Figure 11: iterations after which the elastic rule added a machine of 8 GPUs, of 23
FIGURE11 = (10, 16, 22)
# Figure 12: samples/s at the cost of 32 H20 and 16 H800; on these, and on 32 H800
FIGURE12 = {"5k": (22.95, 18.14), "10k": (11.90, 9.06), "20k": (5.97, 4.85)}

# RLHFuse (arXiv 2409.13221). Figure 8, seconds of an iteration, actor and critic by greatest length:
# generation, inference, both fused; training of actor, of critic, both fused; others of the base and of RLHFuse
RLHFUSE8 = {
    ("13b", "33b", 512): (5.2, 5.4, 9.7, 4.8, 5.4, 7.9, 0.5, 0.6),
    ("13b", "33b", 1024): (10.7, 6.9, 11.0, 5.0, 6.0, 8.9, 0.7, 0.9),
    ("13b", "33b", 2048): (20.5, 8.3, 21.6, 5.8, 7.2, 10.3, 0.7, 1.0),
    ("33b", "13b", 512): (8.1, 5.9, 11.9, 5.3, 4.2, 7.6, 0.3, 0.5),
    ("33b", "13b", 1024): (16.4, 7.0, 17.0, 6.8, 4.3, 8.7, 0.5, 0.7),
    ("33b", "13b", 2048): (31.0, 7.6, 32.1, 8.2, 6.1, 11.1, 0.7, 1.0),
    ("33b", "65b", 512): (9.5, 6.9, 14.0, 6.9, 10.9, 15.0, 1.1, 1.1),
    ("33b", "65b", 1024): (18.1, 7.4, 18.6, 7.2, 11.4, 15.5, 1.2, 1.5),
    ("33b", "65b", 2048): (36.6, 9.4, 37.5, 8.4, 12.8, 17.0, 1.6, 1.6),
    ("65b", "33b", 512): (15.0, 6.5, 17.9, 11.2, 6.1, 13.4, 1.4, 1.6),
    ("65b", "33b", 1024): (29.6, 7.2, 31.0, 13.5, 6.5, 15.9, 1.4, 1.8),
    ("65b", "33b", 2048): (60.6, 9.8, 61.9, 15.0, 7.3, 17.0, 1.8, 1.8),
}  # fmt: skip
# Figure 7, samples/s: base, RLHFuse
RLHFUSE7 = {
    ("13b", "33b", 512): (23.9, 28.2), ("33b", "13b", 512): (21.3, 25.5), ("33b", "65b", 512): (14.4, 16.9),
    ("65b", "33b", 512): (12.5, 15.5), ("13b", "33b", 1024): (17.4, 24.6), ("33b", "13b", 1024): (14.6, 19.3),
    ("33b", "65b", 1024): (11.2, 14.3), ("65b", "33b", 1024): (8.6, 10.6), ("13b", "33b", 2048): (11.9, 15.5),
    ("33b", "13b", 2048): (9.4, 11.5), ("33b", "65b", 2048): (7.4, 9.0), ("65b", "33b", 2048): (5.3, 6.3),
}  # fmt: skip
# Figure 9: seconds of generation and inference by share of the batch that migrates; greatest length 1024
RLHFUSE9 = {
    ("33b", "65b"): {0.0: 25.5, 0.1: 22.6, 0.2: 18.6, 0.3: 20.0, 0.4: 20.8},
    ("65b", "33b"): {0.0: 37.0, 0.1: 33.4, 0.2: 30.0, 0.3: 30.6, 0.4: 32.0},
}

# verl's guide to its fully asynchronous trainer: seconds a step of Qwen2.5-Math-7B on H20 cards
VERL = {32: (790, 295), 64: (365, 189), 128: (356, 151)}  # colocated, asynchronous
VERL_STALENESS = {0.0: 231, 0.1: 171, 0.3: 146, 0.5: 151}  # 128 cards

UNPREDICTED = """\
**Figure 11 contradicts Figure 8.** After iteration 10 a machine is added, and generation's lag behind training falls
from 29.3 to -8.5 s although lengths grow: generation got faster by 38 s or more. Its longest sample, 14,500 tokens, now
takes at least 122 s (8.4 ms a token is the least of Figure 6), so before it took 160 s, on the 32 GPUs of the start. In
Figure 8 these 32 GPUs generate and train on the 20K set in 180 s, which at iteration 10's lengths is at most 127 s. The
trace had another split or was another job; neither is printed. The simulator starts from 16 and 16 GPUs; each machine
that it adds wins a few seconds, not 20 to 38, and so is added too early.

**Figure 10, generation on more GPUs** (0.80 and 0.81, just as the GPUs): with 36 samples a replica the simulated stage
is bound by its longest sample, with 32 by throughput, as published; but Table 3's first step then is 16 points, not 8.

**verl's own table** and the left of **Figure 2** depend on a workload that is not printed: lengths, samples a batch.\
""".splitlines()
