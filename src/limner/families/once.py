"""Texts for models that hear one text throughout, and what of it they do not hear."""

from limner.families.base import Order
from limner.text.prompt import Line, parse


def texts_of(order: Order) -> tuple[tuple[str, str], ...]:
    """What the texts of an order are called, and what they say: the prompt, and with guidance the other."""
    both = ("prompt", order.prompt), ("negative prompt", order.negative_prompt)
    return both if order.guidance != 1 else both[:1]


def heard_once(name: str, text: str, steps: int) -> tuple[Line, tuple[str, ...]]:
    """(what a text, which is called `name`, says at the first of `steps`, warnings of what else it says)."""
    line = parse(text, compose=False).at(0, steps)[0]
    return line, (*no_networks(name, text), *frozen(name, text, steps))


def no_networks(name: str, text: str) -> tuple[str, ...]:
    """Warnings of the networks that a text names."""
    named = parse(text, compose=False).networks
    return tuple(f"{network} in the {name} was left out: this model knows no such thing" for network in named)


def frozen(name: str, text: str, steps: int, reader: str = "this model") -> tuple[str, ...]:
    """A warning where a text changes on the way."""
    if len(parse(text, compose=False).changes(steps)) == 1:
        return ()
    return (f"the {name} changes on the way; {reader} hears it as at the first step throughout",)


def cut(name: str, left_out: int, length: int, reader: str = "this model") -> tuple[str, ...]:
    """A warning where a text has tokens beyond `length`."""
    if not left_out:
        return ()
    return (f"{reader} does not hear the last {left_out} tokens of the {name}; it may have {length}",)
