"""What a search passes from node to node: a text, and what the model says and remembers there."""

from flax import struct

from models.cache import Leaf
from search import proposals


@struct.dataclass
class State:
    """A node: the text after the prompt, and what the model says and remembers at its end.

    problem: `[B]` number of the problem, which only an oracle understands.
    tokens: `[B, M]` completion, right-padded. length: `[B]` its tokens. finished: `[B]` no move is
    left. ended: `[B]` it finished by the end-of-text token. outcome: `[B]` what a finished text is
    worth: the oracle's verdict, or the model's value (0 before). value: `[B]`. hidden: `[B, D]` of
    the last token, of which the logits are made. evaluations: `[B]` tokens the model read to make
    this node.

    logits: `[B, V]`. cache: of the model. In the nodes of a tree both may stand aside, see
    `search.tree_cache`.
    """

    problem: Leaf
    tokens: Leaf
    length: Leaf
    finished: Leaf
    ended: Leaf
    outcome: Leaf
    value: Leaf
    hidden: Leaf
    logits: Leaf
    cache: Leaf
    candidates: proposals.Candidates
    evaluations: Leaf
