"""The bodies of the three TPU kernels: the sums, the gradient of queries, that of keys and values.

One call handles one chunk of C tokens of one query head; the grid around it is in `mosaic_tpu.py`.
Arrays have tokens on lanes (the last axis) and features, H or E on sublanes, so that monomials are
products of slices of rows. A value has a row of ones below its E rows (W rows in all), whose sum is
the denominator. The state is [W, P], already times the multinomials of `features.py`.

    numerator_t = sum_{s<=t in the chunk} w(k_s . q_t) v_s + state phi(q_t)
    state'      = state + sum_s v_s (multinomials * monomials(k_s))^T

The P monomials never exist at once. Those of degree < p fill the scratch `lower`; all of them pass
through `tile`, TILE rows at a time and times their coefficients, on their way into a matrix
product. Gradients retrace it: `tile` holds those of a tile of features, `dlower` those of `lower`.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

Ref = typing.Any  # a reference to memory of the kernel
Scalar = typing.Any

SUBLANES, LANES = 8, 128
TILE = 512  # features in one matrix product

# Rows of `marks`, what a packed or decaying sequence says about the tokens of a chunk:
RUN = 0  # number of the run; a token sees its own
CLOCK = 1  # log_decay times the place in the chunk
READ = 2  # factor of the state, read by this token's query
WRITE = 3  # factor of this token's key in the state after the chunk
KEEP = 4  # factor of the state before the chunk in that after it; the same for all tokens
NUM_MARKS = 5


@dataclasses.dataclass(frozen=True)
class Piece:
    """`count` monomials in a row: rows [start, start + count) of all, or of a tile.

    They are x[factor] * lower[source : source + count], or without the factor at degree 0 and 1.
    `own` is where they stand in `lower` themselves; None at the highest degree.
    """

    degree: int
    factor: int | None
    source: int
    own: int | None
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Features:
    """Where the monomials of `features.monomials(x, order)` stand, and how they are made."""

    head_dim: int
    order: int
    inputs: int  # first row of x in `lower`
    lower_rows: int
    pieces: tuple[Piece, ...]

    @property
    def count(self) -> int:
        """P."""
        return math.comb(self.head_dim + self.order, self.order)

    @property
    def padded(self) -> int:
        """P in whole lanes."""
        return round_up(self.count, LANES)

    def tiles(self) -> list[tuple[slice, list[Piece]]]:
        """(columns of the state, the pieces in this tile); the last one ends in padding."""
        result = []
        for begin in range(0, self.padded, TILE):
            end = min(begin + TILE, self.padded)
            inside = [clipped for p in self.pieces if (clipped := _clip(p, begin, end))]
            result.append((slice(begin, end), inside))
        return result


@functools.cache
def make_features(head_dim: int, order: int) -> Features:
    """The construction of `features.monomials`, with every degree below p at whole sublanes."""
    counts = [math.comb(head_dim + n - 1, n) for n in range(order + 1)]
    kept = counts[: max(order, 2)]  # degrees in `lower`: all below p, and x itself
    places = [sum(round_up(c, SUBLANES) for c in kept[:n]) for n in range(len(kept))]
    pieces, start = [], 0
    for degree, count in enumerate(counts):
        own = places[degree] if degree < order else None
        if degree < 2:
            pieces.append(Piece(degree, None, places[degree], own, start, count))
        else:
            end = places[degree - 1] + counts[degree - 1]
            offset = 0
            for i in range(head_dim):
                # indices all >= i: degree n - 1 in the H - i variables that remain
                tail = math.comb(head_dim - i + degree - 2, degree - 1)
                here = None if own is None else own + offset
                pieces.append(Piece(degree, i, end - tail, here, start + offset, tail))
                offset += tail
        start += count
    return Features(
        head_dim=head_dim,
        order=order,
        inputs=places[1] if order else 0,
        lower_rows=sum(round_up(c, SUBLANES) for c in kept),
        pieces=tuple(pieces),
    )


def _clip(piece: Piece, begin: int, end: int) -> Piece | None:
    first, last = max(piece.start, begin), min(piece.start + piece.count, end)
    if first >= last:
        return None
    skipped = first - piece.start
    return dataclasses.replace(
        piece,
        source=piece.source + skipped,
        own=None if piece.own is None else piece.own + skipped,
        start=first - begin,
        count=last - first,
    )


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Body:
    """The kernels, for one set of static choices.

    Attributes:
      dtype: of the operands of matrix products; their sums are float32.
      precision: of matrix products of float32 operands, which Mosaic otherwise rounds to bfloat16.
    """

    features: Features
    num_groups: int
    dtype: jax.typing.DTypeLike
    precision: jax.lax.Precision | None

    def sums(
        self,
        coefficients_ref: Ref,
        multinomials_ref: Ref,
        query_ref: Ref,
        key_ref: Ref,
        value_ref: Ref,
        marks_ref: Ref | None,
        initial_state_ref: Ref | None,
        numerator_ref: Ref,
        state_ref: Ref,
        lower_ref: Ref,
        tile_ref: Ref,
    ) -> None:
        """numerator [W, C] of a chunk; the state, an output, lives on from chunk to chunk."""
        group, coefficients = self._begin(coefficients_ref, state_ref, initial_state_ref)
        query, key, value = query_ref[...], key_ref[...], value_ref[...]
        score = self._dot("hs,ht->st", key, query)
        weight = self._visible(polynomial(score, coefficients), marks_ref)
        numerator = self._dot("ws,st->wt", value, weight)
        self._fill_lower(lower_ref, query)
        past = jnp.zeros_like(numerator)
        for columns, pieces in self.features.tiles():
            phi = self._tile_of_features(tile_ref, lower_ref, pieces, coefficients)
            past += self._dot("wp,pt->wt", state_ref[:, columns], phi)
        numerator_ref[...] = numerator + _times(past, marks_ref, READ)

        @pl.when(group == self.num_groups - 1)
        def _():
            self._update(state_ref, multinomials_ref, key, value, marks_ref, lower_ref, tile_ref)

    def query_gradient(
        self,
        coefficients_ref: Ref,
        multinomials_ref: Ref,
        query_ref: Ref,
        key_ref: Ref,
        value_ref: Ref,
        marks_ref: Ref | None,
        initial_state_ref: Ref | None,
        dnumerator_ref: Ref,
        dquery_ref: Ref,
        dcoefficients_ref: Ref,
        state_ref: Ref,
        lower_ref: Ref,
        dlower_ref: Ref,
        tile_ref: Ref,
    ) -> None:
        """dquery [H, C]; the states are computed again, in the order of the tokens.

        dcoefficients [G, p+1, C] is summed over chunks here and over lanes outside.
        """
        group, coefficients = self._begin(coefficients_ref, state_ref, initial_state_ref)
        query, key, value = query_ref[...], key_ref[...], value_ref[...]
        dnumerator = dnumerator_ref[...]
        score = self._dot("hs,ht->st", key, query)
        dweight = self._visible(self._dot("ws,wt->st", value, dnumerator), marks_ref)
        dscore = dweight * slope(score, coefficients)
        dcoefficients = _sums_with_powers(dweight, score, len(coefficients))

        self._fill_lower(lower_ref, query)
        dlower_ref[...] = jnp.zeros_like(dlower_ref)
        dpast = _times(dnumerator, marks_ref, READ)
        for columns, pieces in reversed(self.features.tiles()):
            tile_ref[: columns.stop - columns.start] = self._dot(
                "wp,wt->pt", state_ref[:, columns], dpast
            )
            self._retrace(tile_ref, lower_ref, dlower_ref, pieces, coefficients, dcoefficients)
        dquery_ref[...] = self._dot("hs,st->ht", key, dscore) + self._inputs(dlower_ref)

        before = dcoefficients_ref[group]
        before = jnp.where(pl.program_id(3) == 0, jnp.zeros_like(before), before)
        dcoefficients_ref[group] = before + jnp.concatenate(dcoefficients)

        @pl.when(group == self.num_groups - 1)
        def _():
            self._update(state_ref, multinomials_ref, key, value, marks_ref, lower_ref, tile_ref)

    def key_value_gradient(
        self,
        coefficients_ref: Ref,
        multinomials_ref: Ref,
        query_ref: Ref,
        key_ref: Ref,
        value_ref: Ref,
        marks_ref: Ref | None,
        dstate_last_ref: Ref | None,
        dnumerator_ref: Ref,
        dkey_ref: Ref,
        dvalue_ref: Ref,
        dstate_ref: Ref,
        lower_ref: Ref,
        dlower_ref: Ref,
        tile_ref: Ref,
    ) -> None:
        """dkey [H, C] and dvalue [W, C], summed over the query heads; chunks come last to first.

        dstate, an output, is the gradient of the state after the chunk, then of that before it.
        """
        group, coefficients = self._begin(coefficients_ref, dstate_ref, dstate_last_ref)
        query, key, value = query_ref[...], key_ref[...], value_ref[...]
        dnumerator = dnumerator_ref[...]

        @pl.when(group == 0)
        def _():
            self._fill_lower(lower_ref, key)
            dlower_ref[...] = jnp.zeros_like(dlower_ref)
            written = _times(value, marks_ref, WRITE)
            dvalue = jnp.zeros_like(dvalue_ref)
            for columns, pieces in reversed(self.features.tiles()):
                dstate = dstate_ref[:, columns]
                dadded = dstate * multinomials_ref[:, columns]
                phi = self._tile_of_features(tile_ref, lower_ref, pieces)
                dvalue += self._dot("wp,ps->ws", dadded, phi)
                tile_ref[: columns.stop - columns.start] = self._dot("wp,ws->ps", dadded, written)
                self._retrace(tile_ref, lower_ref, dlower_ref, pieces)
                dstate_ref[:, columns] = _times(dstate, marks_ref, KEEP)
            dkey_ref[...] = self._inputs(dlower_ref)
            dvalue_ref[...] = _times(dvalue, marks_ref, WRITE)

        score = self._dot("hs,ht->st", key, query)
        weight = self._visible(polynomial(score, coefficients), marks_ref)
        dweight = self._visible(self._dot("ws,wt->st", value, dnumerator), marks_ref)
        dscore = dweight * slope(score, coefficients)
        dkey_ref[...] += self._dot("ht,st->hs", query, dscore)
        dvalue_ref[...] += self._dot("wt,st->ws", dnumerator, weight)

        self._fill_lower(lower_ref, query)
        dpast = _times(dnumerator, marks_ref, READ)
        for columns, pieces in self.features.tiles():
            phi = self._tile_of_features(tile_ref, lower_ref, pieces, coefficients)
            dstate_ref[:, columns] += self._dot("wt,pt->wp", dpast, phi)

    def _begin(self, coefficients_ref, carry_ref, first_ref):
        """The query head of this call with its coefficients; on the first call sets the carry."""
        kv_head, chunk, group = pl.program_id(1), pl.program_id(3), pl.program_id(4)

        @pl.when((chunk == 0) & (group == 0))
        def _():
            carry_ref[...] = jnp.zeros_like(carry_ref) if first_ref is None else first_ref[...]

        row = kv_head * self.num_groups + group
        return group, [coefficients_ref[row, n] for n in range(self.features.order + 1)]

    def _update(self, state_ref, multinomials_ref, key, value, marks_ref, lower_ref, tile_ref):
        """Adds the keys of a chunk to the state."""
        self._fill_lower(lower_ref, key)
        value = _times(value, marks_ref, WRITE)
        for columns, pieces in self.features.tiles():
            phi = self._tile_of_features(tile_ref, lower_ref, pieces)
            added = self._dot("ws,ps->wp", value, phi) * multinomials_ref[:, columns]
            state_ref[:, columns] = _times(state_ref[:, columns], marks_ref, KEEP) + added

    def _fill_lower(self, lower_ref, x):
        """The monomials of x [H, C] below the highest degree, and x itself."""
        features = self.features
        lower_ref[:1] = jnp.ones((1, x.shape[1]), jnp.float32)
        if features.order:
            lower_ref[features.inputs : features.inputs + features.head_dim] = x.astype(jnp.float32)
        for piece in features.pieces:
            if piece.factor is not None and piece.own is not None:
                lower_ref[piece.own : piece.own + piece.count] = (
                    self._input(lower_ref, piece) * lower_ref[_source(piece)]
                )

    def _tile_of_features(self, tile_ref, lower_ref, pieces, coefficients=None):
        """[tile, C]: monomials, times the coefficients of a query."""
        for piece in pieces:
            factor = None if piece.factor is None else self._input(lower_ref, piece)
            if coefficients is not None:
                coefficient = coefficients[piece.degree]
                factor = coefficient if factor is None else coefficient * factor
            phi = lower_ref[_source(piece)]
            tile_ref[_rows(piece)] = phi if factor is None else factor * phi
        end = pieces[-1].start + pieces[-1].count
        padded = round_up(end, LANES)
        if padded > end:
            tile_ref[end:padded] = jnp.zeros((padded - end, tile_ref.shape[1]), jnp.float32)
        return tile_ref[:padded]

    def _retrace(
        self, tile_ref, lower_ref, dlower_ref, pieces, coefficients=None, dcoefficients=None
    ):
        """Gradients [tile, C] of features, to those of the lower monomials they are made of.

        Tiles, and pieces of a tile, come last to first: then what the higher degrees say about a
        monomial is complete in `dlower` when its own turn comes.
        """
        features = self.features
        for piece in reversed(pieces):
            source = _source(piece)
            direct, phi = tile_ref[_rows(piece)], lower_ref[source]
            if coefficients is not None:
                factor = 1.0 if piece.factor is None else self._input(lower_ref, piece)
                dcoefficients[piece.degree] += factor * jnp.sum(direct * phi, axis=0, keepdims=True)
                direct = coefficients[piece.degree] * direct
            if piece.degree == 0:
                continue
            if piece.degree == 1:
                dlower_ref[source] += direct
                continue
            if piece.own is not None:
                direct += dlower_ref[piece.own : piece.own + piece.count]
            dlower_ref[source] += self._input(lower_ref, piece) * direct
            row = slice(features.inputs + piece.factor, features.inputs + piece.factor + 1)
            dlower_ref[row] += jnp.sum(direct * phi, axis=0, keepdims=True)

    def _input(self, lower_ref, piece):
        """x[factor], [1, C]."""
        row = self.features.inputs + piece.factor
        return lower_ref[row : row + 1]

    def _inputs(self, lower_ref):
        """The rows of x, [H, C]; without any, at order 0, nothing depends on x."""
        features = self.features
        if not features.order:
            return jnp.zeros((features.head_dim, lower_ref.shape[1]), jnp.float32)
        return lower_ref[features.inputs : features.inputs + features.head_dim]

    def _visible(self, weight_ST, marks_ref):
        """Weights of key s (rows) for query t (columns): 0 where t may not see s, and decayed."""
        row = jax.lax.broadcasted_iota(jnp.int32, weight_ST.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, weight_ST.shape, 1)
        visible = row <= column
        if marks_ref is not None:
            shape = weight_ST.shape
            run = jnp.broadcast_to(marks_ref[RUN : RUN + 1], shape)
            clock = jnp.broadcast_to(marks_ref[CLOCK : CLOCK + 1], shape)
            visible = visible & (run == run.T)
            weight_ST = weight_ST * jnp.exp(jnp.minimum(clock - clock.T, 0))
        return jnp.where(visible, weight_ST, 0)

    def _dot(self, axes, left, right):
        """A matrix product with float32 sums; `axes` as in einsum, e.g. "hs,ht->st"."""
        inputs, outputs = axes.split("->")
        left_axes, right_axes = inputs.split(",")
        (shared,) = set(left_axes) & set(right_axes)
        assert outputs == (left_axes + right_axes).replace(shared, "")
        contracted = ((left_axes.index(shared),), (right_axes.index(shared),))
        return jax.lax.dot_general(
            left.astype(self.dtype),
            right.astype(self.dtype),
            (contracted, ((), ())),
            precision=self.precision,
            preferred_element_type=jnp.float32,
        )


def polynomial(x: jax.Array, coefficients: list[Scalar]) -> jax.Array:
    """w(x) by Horner's rule."""
    result = jnp.full(x.shape, coefficients[-1], x.dtype)
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def slope(x: jax.Array, coefficients: list[Scalar]) -> jax.Array:
    """w'(x)."""
    if len(coefficients) == 1:
        return jnp.zeros_like(x)
    return polynomial(x, [n * coefficient for n, coefficient in enumerate(coefficients)][1:])


def _sums_with_powers(dweight_ST, score_ST, num_powers):
    """[sum_s dweight score^n for n]: num_powers rows [1, T]."""
    sums = []
    for n in range(num_powers):
        sums.append(jnp.sum(dweight_ST, axis=0, keepdims=True))
        if n + 1 < num_powers:
            dweight_ST = dweight_ST * score_ST
    return sums


def _times(x, marks_ref, which):
    """x times a row of marks; x itself for a sequence without any."""
    if marks_ref is None:
        return x
    mark = marks_ref[which : which + 1]
    return x.astype(jnp.float32) * (mark[:, :1] if which == KEEP else mark)


def _source(piece):
    return slice(piece.source, piece.source + piece.count)


def _rows(piece):
    return slice(piece.start, piece.start + piece.count)
