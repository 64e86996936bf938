import numpy as np

from ziphius.engine.random import sample_key, uniforms


def test_random_numbers_are_even_and_independent():
    keys = np.array([sample_key(seed, sample) for seed in range(64) for sample in range(64)], np.uint64)
    assert len(set(keys.tolist())) == len(keys)
    table = np.stack([uniforms(keys, np.full(len(keys), place)) for place in range(64)])
    assert table.min() >= 0
    assert table.max() < 1
    counts = np.bincount((table * 64).astype(int).ravel(), minlength=64)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 110  # χ² of 63 degrees of freedom: 1 in 4,000
    for one, two in [(table[1:], table[:-1]), (table[:, 1:], table[:, :-1]), (table[:, 64:], table[:, :-64])]:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.01
    assert sample_key(-1, 0) == sample_key(2**64 - 1, 0)
