"""Constraints on answers. Each distinct one lives in a process of its own, whatever it does there. No torch.

`library` asks llguidance and runs in those processes alone (`process`). On the engine's side `nursery` starts and ends
them, `form` talks to one, `matcher` follows an answer in it, `store` keeps all within limits of time and memory, and in
`lanes` short ones wait for no long ones.
"""
