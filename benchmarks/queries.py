"""How long named queries take: ``python benchmarks/queries.py --json FILE``. (draft)"""

import time
from pathlib import Path
import sys
import numpy as np

from engine.ledger import Ledger, Record
from engine.parts import compact, part
from engine.results import Results
from engine.runfile import write_description
from engine.storage import open_storage
from engine.tables import encode

FINGERPRINT = "0123456789abcdef"
N_LAYERS, N_STEPS, K, N_CHANNELS, N_MASSIVE, N_POOL = 57, 28, 12, 3072, 8, 64


class Made:
    def __init__(self, n_samples, shard_samples):
        self.random = np.random.default_rng(0)
        self.n_samples, self.shard_samples = n_samples, shard_samples
        n = N_STEPS * N_LAYERS
        channels = np.empty((N_POOL, N_STEPS, N_LAYERS, K), np.int32)
        scores = np.empty(channels.shape, np.float32)
        for layer in range(N_LAYERS):
            log = self.random.normal(0, 0.6, N_CHANNELS)
            log[self.random.choice(N_CHANNELS, N_MASSIVE, replace=False)] += 4
            drift = self.random.normal(0, 0.2, (1, N_STEPS, N_CHANNELS))
            own = log + drift + self.random.normal(0, 0.3, (N_POOL, N_STEPS, N_CHANNELS))
            top = np.argsort(-own, axis=-1)[..., :K]
            channels[:, :, layer] = top
            scores[:, :, layer] = np.exp(np.take_along_axis(own, top, -1))
        self.channels, self.scores = channels.reshape(N_POOL, n, K), scores.reshape(N_POOL, n, K)
        self.step = np.repeat(np.arange(N_STEPS), N_LAYERS)
        self.layer = np.tile(np.arange(N_LAYERS), N_STEPS)
        self.block = np.array([f"transformer_blocks.{i}" if i < 19 else f"single_transformer_blocks.{i-19}" for i in range(57)], object)[self.layer]
        self.ids = [f"{x:016x}" for x in self.random.integers(0, 2**63, n_samples)]

    def cells(self, start, stop):
        r = self.random
        m, n = stop - start, len(self.step)
        which = r.integers(0, N_POOL, (m, n))
        at = np.arange(n)
        channels = self.channels[which, at].reshape(m * n, K)
        factor = r.lognormal(0, 0.2, (m * n, 1)).astype(np.float32)
        scores = self.scores[which, at].reshape(m * n, K) * factor
        median = r.lognormal(0, 0.1, m * n).astype(np.float32)
        broken = r.random(m * n) < 1e-4
        ratio = np.where(broken, np.nan, scores[:, 0] / median).astype(np.float32)
        full = lambda x: np.full(m * n, x, object)
        return {
            "sample_id": np.repeat(np.array(self.ids[start:stop], object), n),
            "sample": np.repeat(np.arange(start, stop), n),
            "step": np.tile(self.step, m),
            "timestep": np.tile(1000 - 1000 * self.step / N_STEPS, m).astype(np.float32),
            "sigma": np.tile(1 - self.step / N_STEPS, m).astype(np.float32),
            "layer": np.tile(self.layer, m),
            "block": np.tile(self.block, m),
            "stream": full("image"), "branch": full("cond"), "score": full("mean_abs"),
            "top_channels": channels, "top_scores": scores,
            "median_score": median, "ratio": ratio,
            "energy_share": r.random(m * n, np.float32), "gini": r.random(m * n, np.float32),
            "token_norm_ratio": 1 + r.random(m * n, np.float32),
            "nonfinite": broken * 3,
        }

    def samples(self, start, stop):
        m = stop - start
        c = lambda x: [x] * m
        return {
            "sample_id": self.ids[start:stop], "sample": np.arange(start, stop), "task": c(start // self.shard_samples),
            "prompt": [f"prompt number {i // 4} of a dog" for i in range(start, stop)], "seed": np.arange(start, stop) % 4,
            "status": c("done"), "error": c(None), "image": c(b"\x89PNG"), "width": c(1024), "height": c(1024), "grid_width": c(64), "grid_height": c(64),
            "n_steps": c(N_STEPS), "guidance": c(3.5), "prompt_tokens": c(7), "prompt_truncated": c(False), "seconds": c(1.0), "batch_size": c(1), "attempt": c(1), "peak_memory_bytes": c(1),
        }

    def alignment(self, start, stop):
        r = self.random
        m, n = stop - start, len(self.step)
        N = m * n
        iou = r.random(N, np.float32)
        return {
            "sample_id": np.repeat(np.array(self.ids[start:stop], object), n),
            "sample": np.repeat(np.arange(start, stop), n),
            "step": np.tile(self.step, m), "layer": np.tile(self.layer, m),
            "selection": np.full(N, "top", object), "trial": np.zeros(N, int), "n_clusters": np.full(N, 2), "n_channels": np.full(N, 12),
            "energy_share": r.random(N, np.float32), "iou": iou, "complement_iou": 1 - iou, "best_iou": np.maximum(iou, 1 - iou),
            "chance_iou": r.random(N, np.float32), "area": r.random(N, np.float32), "mask_area": r.random(N, np.float32),
            "ari": r.random(N, np.float32), "nmi": r.random(N, np.float32), "n_left_out": np.zeros(N, int), "n_constant": np.zeros(N, int), "converged": np.ones(N, bool),
        }


def build(path, n_samples, shard):
    t0 = time.time()
    storage = open_storage(path)
    made = Made(n_samples, shard)
    print("pool", time.time() - t0)
    results = Results(storage, "alignment")
    results.begin({})
    ledger = Ledger(storage)
    ids = made.ids
    manifest = {"sample_id": ids, "prompt": [f"prompt number {i // 4} of a dog" for i in range(n_samples)], "seed": np.arange(n_samples) % 4}
    manifest |= {c: [None] * n_samples for c in ("negative_prompt", "width", "height", "steps", "guidance", "mask", "reference")}
    storage.put("manifest.parquet", [encode("manifest", manifest)])
    n_tasks = -(-n_samples // shard)
    for task in range(n_tasks):
        a, b = task * shard, min((task + 1) * shard, n_samples)
        objects = {}
        for table, rows in (("cells", made.cells(a, b)), ("samples", made.samples(a, b))):
            objects[part(table, task)] = storage.put(part(table, task), [encode(table, rows)])
        ledger.write(Record(task, a, b, FINGERPRINT, 1, b - a, 0, 1.0, "2026-01-02T03:04:05+00:00", "h", "cpu", objects))
        results.write_unit(task, {"samples": made.alignment(a, b)}, {"samples": "alignment_samples"})
    print("written", time.time() - t0)
    write_description(storage, {"format_version": 2, "fingerprint": FINGERPRINT, "config": {"model": "m", "score": "mean_abs", "top_k": K},
        "geometry": {"n_samples": n_samples, "n_steps": N_STEPS, "n_layers": N_LAYERS, "n_channels": N_CHANNELS, "n_tokens": 4096}, "n_tasks": n_tasks, "shard_samples": shard})
    results.end({}, {"samples": "alignment_samples"}, {})
    print("ended", time.time() - t0)
    compact(storage, ledger.records(FINGERPRINT), shard)
    print("compacted", time.time() - t0)

if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
