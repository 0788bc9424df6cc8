"""FLOPs, counted in a traced program and computed from sizes; the datasheets."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jaxformer import Compute, abstract, forward
from jaxformer.config import Remat
from tests.helpers.errors import check_names, raises
from tests.helpers.models import NAMED, every_model, three_models
from train.plan.flops import forward_flops, program_flops, train_flops
from train.plan.hardware import HARDWARE, assumptions, find_hardware, step_seconds

CONTEXT = 5
TOKENS = jax.ShapeDtypeStruct((CONTEXT,), jnp.int32)
SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)
ONE = 2 * 4**3  # FLOPs of one such product


def gradient(config, remat: Remat = "none"):
    def loss(params, tokens):
        out = forward(params, config, tokens, compute=Compute(remat=remat))
        return jnp.square(out.logits).sum()

    return jax.value_and_grad(loss)


@every_model
def test_the_formula_counts_the_products_of_the_traced_forward_pass(name: str):
    config = NAMED[name]
    counted = program_flops(lambda p, t: forward(p, config, t).logits, abstract(config), TOKENS)
    assert counted == forward_flops(config, CONTEXT)


@three_models
def test_a_gradient_has_two_more_products_for_each_of_the_forward_pass(name: str):
    config = NAMED[name]
    counted = program_flops(gradient(config), abstract(config), TOKENS)
    assert counted == train_flops(config, CONTEXT)


@three_models
def test_rematerialised_blocks_are_recomputed_except_what_nothing_reads(name: str):
    """The backward pass does not need the output of a block's last product (of both in a parallel block).

    The gradient of a sum needs no operand, but a norm after it does.
    """
    config = NAMED[name]
    plain = program_flops(gradient(config), abstract(config), TOKENS)
    again = program_flops(gradient(config, "block"), abstract(config), TOKENS)
    size = config.sizes
    blocks = forward_flops(config, CONTEXT) - 2 * CONTEXT * size["d"] * size["v"]
    unread = 0 if config.has_norm("after") else size["f"] or size["n"] * size["h"]
    if config.parallel:
        unread += size["n"] * size["h"]
    assert again - plain == blocks - 2 * CONTEXT * size["l"] * size["d"] * unread


def test_a_batch_costs_as_much_as_its_sequences():
    config = NAMED["modern"]
    many = jax.vmap(lambda p, t: forward(p, config, t).logits, in_axes=(None, 0))
    tokens = jax.ShapeDtypeStruct((3, CONTEXT), jnp.int32)
    assert program_flops(many, abstract(config), tokens) == 3 * forward_flops(config, CONTEXT)


def test_loops_count_iterations_and_conditions_their_most_expensive_branch():
    def power(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    def nested(x):
        return jax.lax.scan(lambda x, _: (power(x) @ x, None), x, length=3)[0]

    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, power, x)

    assert program_flops(power, SQUARE) == 7 * ONE
    assert program_flops(nested, SQUARE) == 3 * 8 * ONE
    assert program_flops(either, SQUARE) == 7 * ONE
    assert program_flops(jax.jit(jax.checkpoint(either)), SQUARE) == 7 * ONE


def test_what_nothing_reads_is_not_counted():
    assert program_flops(lambda x: (x @ x, x)[1], SQUARE) == 0


def test_a_while_loop_with_products_is_refused():
    def until(turn):
        return lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, turn, x)

    assert program_flops(until(lambda x: x + 1), SQUARE) == 0
    with raises(ValueError, 128, "jax.lax.scan"):
        program_flops(until(lambda x: x @ x), SQUARE)


def test_a_shard_map_counts_for_each_device_of_its_axes():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.ShapeDtypeStruct((16, 3), jnp.float32)

    def flops(*axes: str) -> int:
        rows = PartitionSpec(axes)
        product = jax.shard_map(
            lambda x: x @ x.T @ x, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={*axes}
        )
        return program_flops(product, x)

    assert flops("a", "b") == 8 * (2 * 2 * 2 * 2 * 3)
    assert flops("b") == 4 * (2 * 2 * 4 * 4 * 3)


def test_each_accelerator_has_one_name_and_its_kinds():
    names = [name for known in HARDWARE for name in (known.name, *known.device_kinds)]
    assert len(names) == len(set(names))
    assert all(find_hardware(name).name in names for name in names)
    with raises(ValueError, "'cpu'", "a100-40gb"):
        find_hardware("cpu")


def test_a_step_takes_the_longer_of_its_parts():
    chip = find_hardware("tpu-v5p")
    took = step_seconds(chip, flops=chip.flops, memory_traffic=3 * chip.memory_rate)
    assert took == (1.0, 3.0)
    assert took.least == 3.0
    check_names(assumptions(chip)[0], "459 TFLOP/s")
