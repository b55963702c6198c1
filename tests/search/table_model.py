"""A decision problem given by tables, in the shape that `search.gumbel` expects of a text model.

Node 0 is the root with `root_actions` actions; every other node has k actions. All nodes of depth
`depth` are finished. Priors, values and outcomes are random but fixed: the dynamics are exact.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from models import cache as caches
from search import proposals, token_model, tree_cache


@dataclasses.dataclass(frozen=True, eq=False)
class TableModel:
    root_log_probs: np.ndarray  # [A]
    log_probs: np.ndarray  # [nodes, k]
    value: np.ndarray  # [nodes]
    outcome: np.ndarray  # [nodes]
    children: np.ndarray  # [nodes, k] (inner nodes)
    root_children: np.ndarray  # [A]
    finished: np.ndarray  # [nodes]
    gumbel: np.ndarray  # [B, A] the noise that both searches share

    memory = tree_cache.NodeCaches()

    @property
    def k(self):
        return self.log_probs.shape[1]

    def root(self, batch):
        zeros = jnp.zeros((batch,), jnp.int32)
        no = jnp.zeros((batch,), bool)
        k = self.k
        empty = proposals.Candidates(
            tokens=jnp.zeros((batch, k, 1), jnp.int32),
            lengths=jnp.ones((batch, k), jnp.int32),
            log_probs=jnp.zeros((batch, k)),
            gumbel=jnp.zeros((batch, k)),
        )
        return token_model.State(
            problem=jnp.arange(batch),  # the row, whose noise is its own
            tokens=zeros[:, None],  # the node number
            length=zeros,
            finished=no,
            ended=no,
            outcome=jnp.zeros((batch,)),
            value=jnp.full((batch,), self.value[0]),
            hidden=jnp.zeros((batch, 1)),
            logits=jnp.zeros((batch, 1)),
            cache=caches.Cache(layers=(), length=zeros),
            candidates=empty,
            evaluations=zeros,
        )

    def propose(self, params, state, rng_key=None):
        """At the root: Gumbel-top-k of all A actions, with their noise. Elsewhere: all k."""
        node = state.tokens[:, 0]
        gumbel = jnp.asarray(self.gumbel)[state.problem]
        score = gumbel + self.root_log_probs
        _, top = jax.lax.top_k(score, self.k)
        is_root = (node == 0)[:, None]
        children = jnp.where(
            is_root, jnp.asarray(self.root_children)[top], jnp.asarray(self.children)[node]
        )
        candidates = proposals.Candidates(
            tokens=children[..., None],
            lengths=jnp.ones_like(children),
            log_probs=jnp.where(
                is_root, jnp.asarray(self.root_log_probs)[top], jnp.asarray(self.log_probs)[node]
            ),
            gumbel=jnp.where(is_root, jnp.take_along_axis(gumbel, top, 1), 0.0),
        )
        return state.replace(candidates=candidates)

    def act(self, params, state, action):
        rows = jnp.arange(action.shape[0])
        node = jnp.where(
            state.finished, state.tokens[:, 0], state.candidates.tokens[rows, action, 0]
        )
        finished = jnp.asarray(self.finished)[node]
        return state.replace(
            tokens=node[:, None],
            length=state.length + jnp.where(state.finished, 0, 1),
            finished=finished,
            ended=finished,
            value=jnp.asarray(self.value)[node],
            evaluations=jnp.ones_like(action),
        )

    def finish(self, params, state):
        def write(state):
            before = state.evaluations
            best = jnp.argmax(state.candidates.log_probs, axis=1).astype(jnp.int32)
            done = state.finished
            state = self.propose(params, self.act(params, state, best))
            return state.replace(evaluations=before + jnp.where(done, 0, 1))

        return jax.lax.while_loop(lambda s: ~jnp.all(s.finished), write, state)

    def verify(self, problem, tokens, lengths, ended):
        return self.outcome[tokens[:, 0]] * ended


def random_table(rng, *, batch, root_actions, k, depth) -> TableModel:
    root_children = np.arange(1, root_actions + 1)
    level, children, finished = root_children, {}, [False]
    next_node = root_actions + 1
    for d in range(1, depth + 1):
        following = []
        for node in level:
            finished.append(d == depth)
            if d < depth:
                children[node] = np.arange(next_node, next_node + k)
                next_node += k
                following.append(children[node])
        level = np.concatenate(following) if following else level
    nodes = len(finished)
    table = np.zeros((nodes, k), np.int32)
    for node, row in children.items():
        table[node] = row

    def log_probs(*shape):
        logits = rng.normal(size=shape) * 1.5
        return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)

    return TableModel(
        root_log_probs=log_probs(root_actions),
        log_probs=log_probs(nodes, k),
        value=rng.uniform(size=nodes).astype(np.float32),
        outcome=(rng.uniform(size=nodes) < 0.3).astype(np.float32),
        children=table,
        root_children=root_children.astype(np.int32),
        finished=np.array(finished),
        gumbel=rng.gumbel(size=(batch, root_actions)).astype(np.float32),
    )
