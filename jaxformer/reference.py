"""The same model as a plain program over Python lists: one token, one head, one neuron at a time.

This is the oracle that the tests hold `transformer.forward` to. It follows the Rust text of Nelson
Elhage's "Transformers for software engineers", with the later GPTs' choices added where they act. It is
slow, it shares no code with what it judges, and it imports nothing but `math`.

`Transformer(config, weights)` takes any object with a Config's fields and any tree with the parameters'
names whose leaves are nested lists.
"""

import math


class State:
    """A token's state: a vector with two operations."""

    def __init__(self, vector):
        self.vector = list(vector)

    def query(self, direction):
        """How much of a direction is in the state: a dot product."""
        return math.fsum(x * y for x, y in zip(self.vector, direction, strict=True))

    def update(self, change):
        """The state with a change added to it."""
        return State(x + y for x, y in zip(self.vector, change, strict=True))


class Embedding:
    """One first state per vocabulary entry."""

    def __init__(self, rows):
        self.rows = rows

    def apply(self, token):
        """The state that a token begins with."""
        if not 0 <= token < len(self.rows):
            raise ValueError(f"token {token} is outside the vocabulary of {len(self.rows)} entries")
        return State(self.rows[token])


class LogitFn:
    """The score of one vocabulary entry: one query on the final state, and a bias where there is one."""

    def __init__(self, direction, bias, cap):
        self.direction, self.bias, self.cap = direction, bias, cap

    def apply(self, state):
        """The logit."""
        return capped(state.query(self.direction) + self.bias, self.cap)


class Unembedding:
    """One LogitFn per vocabulary entry."""

    def __init__(self, logit_fns):
        self.logit_fns = logit_fns

    def apply(self, state):
        """The logits of every vocabulary entry."""
        return [logit_fn.apply(state) for logit_fn in self.logit_fns]


class Linear:
    """A linear function: each output is a query along one direction, and a bias where there is one."""

    def __init__(self, directions, bias=None):
        self.directions = directions
        self.bias = bias or [0.0] * len(directions)

    def apply(self, state):
        """The vector of outputs."""
        return [state.query(d) + b for d, b in zip(self.directions, self.bias, strict=True)]


class AttnHead:
    """Four linear functions: Q asks, K is asked, V says, O writes."""

    def __init__(self, q, k, v, o, scale, turn, window, cap):
        self.q, self.k, self.v, self.o = q, k, v, o
        self.scale, self.turn, self.window, self.cap = scale, turn, window, cap

    def apply(self, states):
        """This head's change to each state, from the states up to it."""
        queries = [self.turn(self.q(state), p) for p, state in enumerate(states)]
        keys = [self.turn(self.k(state), p) for p, state in enumerate(states)]
        values = [self.v.apply(state) for state in states]
        changes = []
        for here, query in enumerate(queries):
            seen = slice(0 if self.window is None else max(0, here + 1 - self.window), here + 1)
            scores = [State(query).query(key) * self.scale for key in keys[seen]]
            scores = [capped(score, self.cap) for score in scores]
            mixed = State([0.0] * len(query))
            for share, value in zip(softmax(scores), values[seen], strict=True):
                mixed = mixed.update([share * x for x in value])
            changes.append(self.o.apply(mixed))
        return changes


class AttnLayer:
    """The sum of its heads."""

    def __init__(self, heads, bias):
        self.heads, self.bias = heads, bias

    def apply(self, states):
        """The layer's change to each state."""
        totals = [State(self.bias) for _ in states]
        for head in self.heads:
            changes = head.apply(states)
            totals = [total.update(change) for total, change in zip(totals, changes, strict=True)]
        return [total.vector for total in totals]


class Neuron:
    """Reads one direction of the state and writes another; gated, it reads a second one linearly."""

    def __init__(self, read, read_bias, gate, gate_bias, write, activation):
        self.read, self.read_bias = read, read_bias
        self.gate, self.gate_bias = gate, gate_bias
        self.write, self.activation = write, activation

    def apply(self, state):
        """The neuron's change to the state."""
        amount = state.query(self.read) + self.read_bias
        if self.gate is None:
            amount = self.activation(amount)
        else:
            amount *= self.activation(state.query(self.gate) + self.gate_bias)
        return [amount * x for x in self.write]


class MLPLayer:
    """The sum of its neurons."""

    def __init__(self, neurons, bias):
        self.neurons, self.bias = neurons, bias

    def apply(self, state):
        """The layer's change to one state."""
        total = State(self.bias)
        for neuron in self.neurons:
            total = total.update(neuron.apply(state))
        return total.vector


class ResBlock:
    """An attention layer's update of every state, then an MLP layer's, each between two norms (if there are any)."""

    def __init__(self, attn_norms, attn, mlp_norms, mlp, parallel):
        self.attn_norms, self.attn = attn_norms, attn
        self.mlp_norms, self.mlp = mlp_norms, mlp
        self.parallel = parallel

    def apply(self, states):
        """The updated states."""
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
    """Embedding, residual blocks, unembedding."""

    def __init__(self, config, weights):
        scale = config.embedding_scale
        self.embedding = Embedding([[scale * x for x in row] for row in weights.W_E])
        self.position = position(config, weights)
        self.blocks = [res_block(config, weights.blocks, layer) for layer in range(config.n_layers)]
        self.final_norm = norm(config, weights.final_norm)
        cap = config.logit_cap
        directions = weights.W_E if config.tied else transpose(weights.W_U)
        biases = weights.b_U or [0.0] * config.n_vocab
        self.unembedding = Unembedding(
            [LogitFn(direction, b, cap) for direction, b in zip(directions, biases, strict=True)]
        )

    def apply(self, tokens):
        """A list of logits per position."""
        states = [self.embedding.apply(token) for token in tokens]
        states = [state.update(self.position(p)) for p, state in enumerate(states)]
        for block in self.blocks:
            states = block.apply(states)
        return [self.unembedding.apply(self.final_norm(state)) for state in states]


def res_block(config, blocks, layer):
    """The block of one layer, read off the stacked weights."""
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
    """All heads of one layer. Query heads in a row share a key/value head."""
    kv_heads = config.n_kv_heads or config.n_heads
    scale = config.attention_scale or 1 / math.sqrt(config.d_head)
    if config.scale_by_depth:
        scale /= layer + 1
    pattern = config.window_pattern
    local = config.window is not None and pattern[layer % len(pattern)] == "L"
    window, turn = config.window if local else None, turner(config, local)

    def linear(weight, bias, head):  # weight[layer] is [d, head, h]; each output reads along d
        directions = transpose([row[head] for row in weight[layer]])
        return Linear(directions, bias[layer][head] if bias else None)

    all_q = [linear(attn.W_Q, attn.b_Q, n) for n in range(config.n_heads)]
    all_k = [linear(attn.W_K, attn.b_K, k) for k in range(kv_heads)]
    norm_q, norm_k = (weights and weights[layer] for weights in (attn.norm_Q, attn.norm_K))
    heads = []
    for n in range(config.n_heads):
        k = n // (config.n_heads // kv_heads)
        q_fn = normed_head(config, all_q, n, norm_q)
        k_fn = normed_head(config, all_k, k, norm_k)
        v_fn, o_fn = linear(attn.W_V, attn.b_V, k), Linear(transpose(attn.W_O[layer][n]))
        heads.append(AttnHead(q_fn, k_fn, v_fn, o_fn, scale, turn, window, config.attention_cap))
    return AttnLayer(heads, attn.b_O[layer] if attn.b_O else [0.0] * config.d_model)


def normed_head(config, linears, head, weights):
    """A function from a state to one head's query or key, normed where the Config says so."""

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
    """What a norm of this weight multiplies by."""
    return 1 + w if config.norm_plus_one else w


def capped(x, cap):
    """A number held within ±cap, softly."""
    return x if cap is None else cap * math.tanh(x / cap)


def mlp_layer(config, mlp, layer):
    """All neurons of one layer."""
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
    """A function from a state to its normed reading; without weights there is no norm."""
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
    """A function from a position to the change that it makes to the first state."""
    if config.position == "learned":
        return lambda p: weights.W_pos[p]
    if config.position == "sinusoidal":
        return lambda p: [sinusoid(p, i, config.d_model) for i in range(config.d_model)]
    return lambda p: [0.0] * config.d_model


def sinusoid(p, i, d_model):
    """Coordinate i of position p: sines at even i, cosines at odd."""
    angle = p / 10_000 ** ((i - i % 2) / d_model)
    return math.cos(angle) if i % 2 else math.sin(angle)


def turner(config, local):
    """A function from a query or key and its position to the turned vector, in a layer with a window or without."""
    if config.position != "rotary":
        return lambda vector, p: vector
    half = round(config.d_head * config.rotary_fraction) // 2

    def turn(vector, p):
        turned = list(vector)
        for i in range(half):
            angle = p * frequency(config, i / half, local)
            a, b = vector[i], vector[i + half]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + half] = a * math.sin(angle) + b * math.cos(angle)
        return turned

    return turn


def frequency(config, part, local):
    """What a pair of coordinates turns by at each position; `part` is its place among the pairs, from 0 to 1."""
    if local and config.local_rotary_base is not None:
        return config.local_rotary_base**-part
    plain = config.rotary_base**-part
    if config.rotary_scaling == "linear":
        return plain / config.rotary_factor
    if config.rotary_scaling == "llama3":
        turns = config.rotary_context * plain / (2 * math.pi)
        if turns <= config.rotary_low:
            return plain / config.rotary_factor
        if turns < config.rotary_high:
            kept = (turns - config.rotary_low) / (config.rotary_high - config.rotary_low)
            return kept * plain + (1 - kept) * plain / config.rotary_factor
    return plain


def softmax(scores):
    """Positive shares that sum to 1."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def transpose(rows):
    """Columns as rows."""
    return [list(column) for column in zip(*rows, strict=True)]


ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
}
