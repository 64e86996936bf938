"""Samples laid into as few rows as hold them."""

from ziphius.text.packing import Row, lay_row, plan_packing


def pack_samples(samples, seq_len: int, pad_id: int) -> list[Row]:
    plan = plan_packing([len(tokens) for tokens, _ in samples], seq_len)
    return [lay_row([samples[index] for index in row], seq_len, pad_id) for row in plan]
