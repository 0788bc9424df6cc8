"""The syntax of `--mesh` and `--rules`."""

from jaxformer.sharding import Places


def parse_mesh(text: str) -> dict[str, int]:
    """Return the axes of a mesh and their sizes.

    Raises:
        ValueError: a syntax error, an axis that occurs twice, a size below 1.

    >>> parse_mesh("data=2,fsdp=4")
    {'data': 2, 'fsdp': 4}
    """
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and size.isdecimal()):
            raise ValueError(
                f"mesh={text!r} is not a mesh; write AXIS=SIZE,AXIS=SIZE, such as data=2,fsdp=4"
            )
        if name in axes:
            raise ValueError(f"mesh={text!r} has the axis {name} twice; give each axis one size")
        if int(size) < 1:
            raise ValueError(f"mesh={text!r} has {name}={size}; choose a size of at least 1")
        axes[name] = int(size)
    return axes


def parse_rules(texts: tuple[str, ...]) -> dict[str, Places]:
    """Return the rules, each AXIS=MESH-AXIS; several mesh axes are joined by "+", and "none" means no mesh axis.

    Raises:
        ValueError: a syntax error, an axis with two rules.

    >>> parse_rules(("batch=data+fsdp", "d=fsdp", "v=none"))
    {'batch': ('data', 'fsdp'), 'd': 'fsdp', 'v': None}
    """
    rules: dict[str, Places] = {}
    for text in texts:
        axis, equals, places = text.partition("=")
        names = tuple(places.split("+"))
        if not (equals and axis and all(name.isidentifier() for name in names)):
            raise ValueError(
                f"{text!r} is not a rule; write AXIS=MESH-AXIS, such as d=fsdp or batch=data+fsdp"
            )
        if axis in rules:
            raise ValueError(f"the axis {axis} has two rules; give it only one")
        rules[axis] = None if names == ("none",) else names[0] if len(names) == 1 else names
    return rules
