"""Operations of teachers whose tokens do not use every weight."""

from __future__ import annotations

from transformers import MixtralConfig, MixtralForCausalLM

from cocomix.concepts.costs import attention_flops, forward_flops
from cocomix.concepts.teacher import Teacher


def test_of_a_mixture_the_experts_that_a_token_uses_are_counted() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(**sizes, num_hidden_layers=1, vocab_size=50, num_local_experts=4, num_experts_per_tok=2)
    teacher = Teacher(MixtralForCausalLM(config), 0)
    attention, expert, head = 16 * 16 + 2 * 8 * 16 + 16 * 16, 3 * 16 * 24, 50 * 16
    due = 2 * (attention + 2 * expert + head) + attention_flops(teacher, 8)
    assert forward_flops(teacher, 8) == due
