"""The same model as a plain program over Python lists: one token, one head, one neuron at a time.

This is the oracle: the tests compare `transformer.forward` with it. It follows the Rust code of Nelson Elhage's
"Transformers for software engineers", extended by the choices of later GPTs. It is slow, it shares no code with the
model that it checks, and it imports only `math`.

`from_params(params, config)` makes the model of any parameters. `Transformer(config, weights)` takes any object with
the fields of a Config, and any tree with the parameters' names whose leaves are nested lists.
"""

import math


def from_params(params, config):
    """Return the plain-Python model of any parameters, whose blocks may be stacked or a list.

    >>> import jax, jaxformer
    >>> config = jaxformer.Config(n_layers=1, d_model=4, n_heads=2, d_head=2, d_mlp=3, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> logits = from_params(params, config).apply([3, 1])
    >>> len(logits), len(logits[0])
    (2, 5)
    """
    if not hasattr(params, "blocks"):
        raise ValueError(
            f"params is a {type(params).__name__} and config is a {type(config).__name__}; the order is params, config"
        )
    if isinstance(params.blocks, list) and params.blocks:
        params = params._replace(blocks=stack([as_lists(block) for block in params.blocks]))
    return Transformer(config, as_lists(params))


def as_lists(tree):
    """A tree of arrays as the same tree of nested lists."""
    if hasattr(tree, "_make"):  # a NamedTuple
        return tree._make(map(as_lists, tree))
    return tree.tolist() if hasattr(tree, "tolist") else tree


def stack(layers):
    """A list of trees as one tree, whose leaves are lists of layers."""
    if hasattr(layers[0], "_make"):
        return layers[0]._make(stack(parts) for parts in zip(*layers, strict=True))
    return None if layers[0] is None else list(layers)


class State:
    """The state of one token: a vector with two operations."""

    def __init__(self, vector):
        self.vector = list(vector)

    def query(self, direction):
        """Return how much of a direction is in the state: a dot product."""
        return math.fsum(x * y for x, y in zip(self.vector, direction, strict=True))

    def update(self, change):
        """Return the state with a change added."""
        return State(x + y for x, y in zip(self.vector, change, strict=True))


class Embedding:
    """One initial state per vocabulary entry."""

    def __init__(self, rows):
        self.rows = rows

    def apply(self, token):
        """Return the initial state of a token."""
        if not 0 <= token < len(self.rows):
            raise ValueError(f"token {token} is outside the vocabulary of {len(self.rows)} entries")
        return State(self.rows[token])


class LogitFn:
    """The logit of one vocabulary entry: one query on the final state, plus the bias if there is one."""

    def __init__(self, direction, bias, cap):
        self.direction, self.bias, self.cap = direction, bias, cap

    def apply(self, state):
        """Return the logit."""
        return soft_cap(state.query(self.direction) + self.bias, self.cap)


class Unembedding:
    """One LogitFn per vocabulary entry."""

    def __init__(self, logit_fns):
        self.logit_fns = logit_fns

    def apply(self, state):
        """Return the logits of all vocabulary entries."""
        return [logit_fn.apply(state) for logit_fn in self.logit_fns]


class Linear:
    """A linear function: each output is a query along one direction, plus the bias if there is one."""

    def __init__(self, directions, bias=None):
        self.directions = directions
        self.bias = bias or [0.0] * len(directions)

    def apply(self, state):
        """Return the vector of outputs."""
        return [state.query(d) + b for d, b in zip(self.directions, self.bias, strict=True)]


class AttnHead:
    """Four linear functions: Q and K compute queries and keys, V computes values, O writes to the state."""

    def __init__(self, q, k, v, o, scale, rotate, window, cap):
        self.q, self.k, self.v, self.o = q, k, v, o
        self.scale, self.rotate, self.window, self.cap = scale, rotate, window, cap

    def apply(self, states):
        """Return this head's change to each state; it depends on the states up to that one."""
        queries = [self.rotate(self.q(state), p) for p, state in enumerate(states)]
        keys = [self.rotate(self.k(state), p) for p, state in enumerate(states)]
        values = [self.v.apply(state) for state in states]
        changes = []
        for here, query in enumerate(queries):
            seen = slice(0 if self.window is None else max(0, here + 1 - self.window), here + 1)
            scores = [State(query).query(key) * self.scale for key in keys[seen]]
            scores = [soft_cap(score, self.cap) for score in scores]
            mixed = State([0.0] * len(query))
            for weight, value in zip(softmax(scores), values[seen], strict=True):
                mixed = mixed.update([weight * x for x in value])
            changes.append(self.o.apply(mixed))
        return changes


class AttnLayer:
    """An attention layer: the sum of its heads."""

    def __init__(self, heads, bias):
        self.heads, self.bias = heads, bias

    def apply(self, states):
        """Return the layer's change to each state."""
        totals = [State(self.bias) for _ in states]
        for head in self.heads:
            changes = head.apply(states)
            totals = [total.update(change) for total, change in zip(totals, changes, strict=True)]
        return [total.vector for total in totals]


class Neuron:
    """One neuron: it reads one direction of the state and writes another. A gated neuron reads two directions."""

    def __init__(self, read, read_bias, gate, gate_bias, write, activation):
        self.read, self.read_bias = read, read_bias
        self.gate, self.gate_bias = gate, gate_bias
        self.write, self.activation = write, activation

    def apply(self, state):
        """Return the neuron's change to the state."""
        amount = state.query(self.read) + self.read_bias
        if self.gate is None:
            amount = self.activation(amount)
        else:
            amount *= self.activation(state.query(self.gate) + self.gate_bias)
        return [amount * x for x in self.write]


class MLPLayer:
    """An MLP layer: the sum of its neurons."""

    def __init__(self, neurons, bias):
        self.neurons, self.bias = neurons, bias

    def apply(self, state):
        """Return the layer's change to one state."""
        total = State(self.bias)
        for neuron in self.neurons:
            total = total.update(neuron.apply(state))
        return total.vector


class ResBlock:
    """One residual block: an attention layer, then an MLP layer, each with a norm before and after (or none)."""

    def __init__(self, attn_norms, attn, mlp_norms, mlp, parallel):
        self.attn_norms, self.attn = attn_norms, attn
        self.mlp_norms, self.mlp = mlp_norms, mlp
        self.parallel = parallel

    def apply(self, states):
        """Return the updated states."""
        before = states
        norm, post_norm = self.attn_norms
        changes = self.attn.apply([norm(state) for state in states])
        changes = [post_norm(State(change)).vector for change in changes]
        states = [state.update(change) for state, change in zip(states, changes, strict=True)]
        if self.mlp is None:
            return states
        read = before if self.parallel else states
        norm, post_norm = self.mlp_norms
        changes = [self.mlp.apply(norm(state)) for state in read]
        changes = [post_norm(State(change)).vector for change in changes]
        return [state.update(change) for state, change in zip(states, changes, strict=True)]


class Transformer:
    """The model: embedding, residual blocks, unembedding."""

    def __init__(self, config, weights):
        scale = config.embedding_scale
        self.embedding = Embedding([[scale * x for x in row] for row in weights.W_E])
        self.position = position(config, weights)
        self.blocks = [res_block(config, weights.blocks, layer) for layer in range(config.n_layers)]
        self.final_norm = norm(config, weights.final_norm)
        cap = config.logit_soft_cap
        directions = weights.W_E if config.tied else transpose(weights.W_U)
        biases = weights.b_U or [0.0] * config.n_vocab
        self.unembedding = Unembedding(
            [LogitFn(direction, b, cap) for direction, b in zip(directions, biases, strict=True)]
        )

    def apply(self, tokens):
        """Return a list of logits per position."""
        states = [self.embedding.apply(token) for token in tokens]
        states = [state.update(self.position(p)) for p, state in enumerate(states)]
        for block in self.blocks:
            states = block.apply(states)
        return [self.unembedding.apply(self.final_norm(state)) for state in states]


def res_block(config, blocks, layer):
    """Return the block of one layer."""
    no_mlp = config.d_mlp == 0
    attn_norms, mlp_norms = (
        [norm(config, weights, layer) for weights in pair]
        for pair in (
            (blocks.attn_norm, blocks.attn_post_norm),
            (blocks.mlp_norm, blocks.mlp_post_norm),
        )
    )
    return ResBlock(
        attn_norms=attn_norms,
        attn=attn_layer(config, blocks.attn, layer),
        mlp_norms=mlp_norms,
        mlp=None if no_mlp else mlp_layer(config, blocks.mlp, layer),
        parallel=config.parallel,
    )


def attn_layer(config, attn, layer):
    """Return the attention layer of one block. Consecutive query heads share a key/value head."""
    kv_heads = config.n_kv_heads or config.n_heads
    scale = config.attention_scale or 1 / math.sqrt(config.d_head)
    if config.scale_scores_by_layer:
        scale /= layer + 1
    pattern = config.window_pattern
    local = config.window is not None and pattern[layer % len(pattern)] == "L"
    window, rotate = config.window if local else None, rotary_fn(config, local)

    def linear(weight, bias, head):  # weight[layer] is [d n h]; each output reads along d
        directions = transpose([row[head] for row in weight[layer]])
        return Linear(directions, bias[layer][head] if bias else None)

    all_q = [linear(attn.W_Q, attn.b_Q, n) for n in range(config.n_heads)]
    all_k = [linear(attn.W_K, attn.b_K, k) for k in range(kv_heads)]
    norm_q, norm_k = (weights and weights[layer] for weights in (attn.norm_Q, attn.norm_K))
    heads = []
    for n in range(config.n_heads):
        k = n // (config.n_heads // kv_heads)
        q_fn = normalized_head(config, all_q, n, norm_q)
        k_fn = normalized_head(config, all_k, k, norm_k)
        v_fn, o_fn = linear(attn.W_V, attn.b_V, k), Linear(transpose(attn.W_O[layer][n]))
        heads.append(
            AttnHead(q_fn, k_fn, v_fn, o_fn, scale, rotate, window, config.attention_soft_cap)
        )
    return AttnLayer(heads, attn.b_O[layer] if attn.b_O else [0.0] * config.d_model)


def normalized_head(config, linears, head, weights):
    """Return a function from a state to one head's query or key, normalized if the Config has qk_norm."""

    def apply(state):
        vectors = [linear.apply(state) for linear in linears]
        vector = vectors[head]
        if config.qk_norm == "none":
            return vector
        together = config.qk_norm == "all"
        pool = [x for other in vectors for x in other] if together else vector
        scale = math.sqrt(math.fsum(x * x for x in pool) / len(pool) + config.norm_epsilon)
        own = weights[head] if together else weights
        return [x / scale * gain(config, w) for x, w in zip(vector, own, strict=True)]

    return apply


def gain(config, w):
    """Return the factor of a norm with this weight."""
    return 1 + w if config.norm_plus_one else w


def soft_cap(x, cap):
    """Return the soft cap of a number: cap·tanh(x/cap)."""
    return x if cap is None else cap * math.tanh(x / cap)


def mlp_layer(config, mlp, layer):
    """Return the MLP layer of one block."""
    reads = transpose(mlp.W_in[layer])
    gates = transpose(mlp.W_gate[layer]) if config.gated else [None] * config.d_mlp
    no_bias = [0.0] * config.d_mlp
    read_biases = mlp.b_in[layer] if mlp.b_in else no_bias
    gate_biases = mlp.b_gate[layer] if mlp.b_gate else no_bias
    activation = ACTIVATIONS[config.activation]
    columns = zip(reads, read_biases, gates, gate_biases, mlp.W_out[layer], strict=True)
    neurons = [Neuron(*column, activation) for column in columns]
    return MLPLayer(neurons, mlp.b_out[layer] if mlp.b_out else [0.0] * config.d_model)


def norm(config, weights, layer=None):
    """Return a function that normalizes a state; without weights it returns the state unchanged."""
    if weights is None:
        return lambda state: state
    weight = weights.w if layer is None else weights.w[layer]
    bias = [0.0] * config.d_model
    if weights.b:
        bias = weights.b if layer is None else weights.b[layer]

    def apply(state):
        size = len(state.vector)
        mean = math.fsum(state.vector) / size if config.norm == "layer" else 0.0
        centred = [x - mean for x in state.vector]
        scale = math.sqrt(math.fsum(x * x for x in centred) / size + config.norm_epsilon)
        gains = [gain(config, w) for w in weight]
        return State(x / scale * w + b for x, w, b in zip(centred, gains, bias, strict=True))

    return apply


def position(config, weights):
    """Return a function from a position to its vector, which is added to the embedding."""
    if config.position == "learned":
        return lambda p: weights.W_pos[p]
    if config.position == "sinusoidal":
        return lambda p: [sinusoid(p, i, config.d_model) for i in range(config.d_model)]
    return lambda p: [0.0] * config.d_model


def sinusoid(p, i, d_model):
    """Return coordinate i of the sinusoidal vector of position p: a sine for even i, a cosine for odd i."""
    angle = p / 10_000 ** ((i - i % 2) / d_model)
    return math.cos(angle) if i % 2 else math.sin(angle)


def rotary_fn(config, local):
    """Return a function that rotates a query or key by its position (rotary). `local`: the layer has a window."""
    if config.position != "rotary":
        return lambda vector, p: vector
    half = round(config.d_head * config.rotary.fraction) // 2

    def rotate(vector, p):
        rotated = list(vector)
        for i in range(half):
            angle = p * frequency(config, i / half, local)
            a, b = vector[i], vector[i + half]
            rotated[i] = a * math.cos(angle) - b * math.sin(angle)
            rotated[i + half] = a * math.sin(angle) + b * math.cos(angle)
        return rotated

    return rotate


def frequency(config, part, local):
    """Return the angle per position of one pair of coordinates. `part`: the pair's index over the number of pairs."""
    if local and config.rotary.local_base is not None:
        return config.rotary.local_base**-part
    plain = config.rotary.base**-part
    if config.rotary.scaling == "linear":
        return plain / config.rotary.factor
    if config.rotary.scaling == "llama3":
        turns = config.rotary.original_context * plain / (2 * math.pi)
        if turns <= config.rotary.low_turns:
            return plain / config.rotary.factor
        if turns < config.rotary.high_turns:
            kept = (turns - config.rotary.low_turns) / (
                config.rotary.high_turns - config.rotary.low_turns
            )
            return kept * plain + (1 - kept) * plain / config.rotary.factor
    return plain


def softmax(scores):
    """Return the softmax: positive weights that sum to 1."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def transpose(rows):
    """Return the columns as rows."""
    return [list(column) for column in zip(*rows, strict=True)]


ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
}
