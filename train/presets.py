import dataclasses
@dataclasses.dataclass(frozen=True)
class AdamW:
    learning_rate: float = 3e-3
    warmup: int = 100
    last_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip: float = 1.0
