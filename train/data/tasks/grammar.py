"""Short stories from a probabilistic grammar with exactly known entropy."""

from functools import partial
from typing import NamedTuple

from jaxtyping import Array, Key

from jaxformer.text.tokenizer import Words
from train.data.batches import Batch
from train.data.tasks.chain import entropy, ngram_entropies, sample, tabulate
from train.data.tasks.task import Task, fixed_batches

PRONOUN = {"ann": "she", "eva": "she", "mia": "she", "ben": "he", "sam": "he", "tom": "he"}
COLOURS = ("red", "blue", "green")
THINGS = ("ball", "coin", "ring", "hat")


class Story(NamedTuple):
    """The state of a story: everything that the next word depends on."""

    coming: tuple[str, ...] = ("once",)
    """next words, without a choice"""
    then: str = "hero"
    """what to choose after them"""
    hero: str = ""
    many: bool = False
    colour: str = ""
    thing: str = ""
    friend: str = ""
    given: bool = False


def choices(story: Story) -> dict[str, tuple[float, Story]]:
    """Return the possible next words, each with its probability and next state.

    Each word leads to one state, so the words so far determine the state, and the entropy can be computed.

    >>> {word: chance for word, (chance, _) in choices(Story((), "sentence", "tom")).items()}
    {'he': 0.75, 'so': 0.25}
    """
    if story.coming:
        return {story.coming[0]: (1.0, story._replace(coming=story.coming[1:]))}
    weights = _opening(story) or _event(story)
    total = sum(weight for weight, _ in weights.values())
    return {word: (weight / total, after) for word, (weight, after) in weights.items()}


def _opening(story: Story) -> dict[str, tuple[float, Story]]:
    """Choose a word of the first sentence, such as `once ann found two red balls .`."""
    to = story._replace
    match story.then:
        case "hero":
            return {n: (1.0, to(coming=("found",), then="number", hero=n)) for n in PRONOUN}
        case "number":
            return {n: (1.0, to(then="colour", many=n == "two")) for n in ("a", "two")}
        case "colour":
            return {c: (1.0, to(then="thing", colour=c)) for c in COLOURS}
        case "thing":
            forms = {thing + "s" * story.many: thing for thing in THINGS}
            stop = to(coming=(".",), then="sentence")
            return {form: (1.0, stop._replace(thing=thing)) for form, thing in forms.items()}
    return {}


def _end(story: Story, *words: str) -> Story:
    """End the sentence with these words."""
    return story._replace(coming=(*words, "."), then="sentence")


def _event(story: Story) -> dict[str, tuple[float, Story]]:
    """Choose a word of a later sentence; `so` begins the last one, which says who kept the thing."""
    hero, friend, given = story.hero, story.friend, story.given
    it = "them" if story.many else "it"
    the_thing = ("the", story.colour, story.thing + "s" * story.many)
    owner = friend if given else hero
    end = partial(_end, story)
    match story.then:
        case "sentence":  # the hero is a pronoun, the friend a name
            subjects = {PRONOUN[hero]: (3.0, story._replace(then="hero does"))}
            if friend:
                subjects[friend] = (2.0, story._replace(then="friend does"))
            return {**subjects, "so": (1.0, Story((owner, "kept", *the_thing, ".", "once")))}
        case "hero does" if given:
            return {"missed": (2.0, end(it)), "thanked": (1.0, end(friend))}
        case "hero does" if friend:
            gift = end(it, "to", friend)._replace(given=True)
            return {"hid": (2.0, end(it)), "gave": (1.0, gift)}
        case "hero does":
            return {"hid": (2.0, end(it)), "met": (3.0, story._replace(then="friend"))}
        case "friend":
            return {n: (1.0, end()._replace(friend=n)) for n in PRONOUN if n != hero}
    if given:  # what the friend does
        return {"liked": (1.0, end(*the_thing)), "showed": (2.0, end(it))}
    return {"wanted": (2.0, end(*the_thing)), "saw": (1.0, end(it))}


def grammar() -> Task:
    """Predict the words of consecutive stories; each window begins with a story.

    A story has a hero, one or two things, and perhaps a friend. A good prediction needs the agreement of pronouns and
    plurals, and the memory of who found what, in which colour, and whether it was given away.

    >>> import jax
    >>> task = grammar()
    >>> windows = jax.device_get(task.draw(jax.random.key(0), 1, 9).windows)
    >>> task.tokenizer.decode(windows[0])
    'once mia found two blue hats . she hid them'
    """
    chain = tabulate(Story(), choices)

    def draw(key: Key[Array, ""], batch: int, context: int) -> Batch:
        return sample(chain, key, batch, context)

    return Task(
        tokenizer=Words(chain.vocabulary),
        draw=draw,
        held_out=lambda context: fixed_batches(draw, context, n=16, batch=64),
        perfect=lambda context: entropy(chain, context),
        yardsticks=lambda context: ngram_entropies(chain, context),
    )
