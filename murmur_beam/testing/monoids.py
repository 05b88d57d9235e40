"""The laws of a monoid, as a base class for pytest."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from functools import reduce
from typing import Any

from murmur_beam.monoids.base import Monoid


class _Required:
    """An attribute that a subclass must define; reading it says so."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __get__(self, laws: object | None, owner: type) -> Any:
        if laws is None:
            return self
        raise AssertionError(f"{owner.__name__} must define {self._what}")


def _required(what: str) -> Any:
    return _Required(what)


class MonoidLaws:
    """The laws of a monoid, as tests. Subclass it in a test module, and pytest runs them all::

        from hypothesis import strategies as st
        from murmur_beam.testing import MonoidLaws

        class TestFlags(MonoidLaws):
            monoid = FLAGS
            deltas = st.integers(0, 255)

    It needs pytest and Hypothesis: ``pip install 'murmur-beam[test]'``.

    Attributes:
        monoid: required: the instance under test.
        deltas: required: Hypothesis strategy of deltas, as `Monoid.lift` makes them. If ``combine`` may raise, such as
            on an overflow, ten deltas together must stay within its limits.
        pickler: object with ``dumps`` and ``loads``. Beam pickles lambdas, which the standard library's pickle cannot:
            set cloudpickle if the monoid has lambdas.
    """

    monoid: Monoid[Any] = _required("monoid, the Monoid under test")
    deltas: Any = _required("deltas, a Hypothesis strategy of what Monoid.lift makes")
    pickler: Any = pickle

    def aggregates(self) -> Any:
        """Strategy of the aggregates for which the laws are checked: folds of up to three deltas."""
        return _needed("hypothesis.strategies").lists(self.deltas, max_size=3).map(self.monoid.fold)

    def equal(self, decoded: Any, original: Any) -> bool:
        """Return whether an aggregate survived encoding: by ``==`` if its type defines it; override it if ``==`` does
        not return a bool.

        The other laws compare bytes: ``1 == True``, but a store distinguishes the two.
        """
        compare: Any = type(original).__eq__
        return compare is object.__eq__ or bool(decoded == original)

    def test_identity(self) -> None:
        """Combining with the identity must change nothing, on either side."""
        combine, identity = self.monoid.combine, self.monoid.identity

        def law(a: Any) -> None:
            self._same("combine(identity, a)", combine(identity, a), "a", a)
            self._same("combine(a, identity)", combine(a, identity), "a", a)

        self._for_all(law, self.aggregates())

    def test_associativity(self) -> None:
        """The grouping of deltas must not matter: every bundle and every retry groups them differently."""
        combine = self.monoid.combine

        def law(a: Any, b: Any, c: Any) -> None:
            self._same(
                "combine(combine(a, b), c)",
                combine(combine(a, b), c),
                "combine(a, combine(b, c))",
                combine(a, combine(b, c)),
            )

        self._for_all(law, self.aggregates(), self.aggregates(), self.aggregates())

    def test_commutativity(self) -> None:
        """A monoid that claims to be commutative must not depend on the order."""
        if not self.monoid.commutative:
            _needed("pytest").skip(f"{self.monoid.name} does not claim to be commutative")
        combine = self.monoid.combine

        def law(a: Any, b: Any) -> None:
            self._same("combine(a, b)", combine(a, b), "combine(b, a)", combine(b, a))

        self._for_all(law, self.aggregates(), self.aggregates())

    def test_idempotence(self) -> None:
        """A monoid that claims to be idempotent must not change when a delta is redelivered, at once or later."""
        if not self.monoid.idempotent:
            _needed("pytest").skip(f"{self.monoid.name} does not claim to be idempotent")
        combine = self.monoid.combine

        def law(a: Any, b: Any) -> None:
            self._same("combine(a, a)", combine(a, a), "a", a)
            self._same("combine(combine(a, b), a)", combine(combine(a, b), a), "combine(a, b)", combine(a, b))

        self._for_all(law, self.aggregates(), self.aggregates())

    def test_fold(self) -> None:
        """``fold`` must agree with ``combine`` one by one, for any iterable, including an empty one."""

        def law(values: list[Any]) -> None:
            one_by_one = reduce(self.monoid.combine, values, self.monoid.identity)
            self._same("fold(values)", self.monoid.fold(iter(values)), "combine one by one", one_by_one)

        self._for_all(law, _needed("hypothesis.strategies").lists(self.aggregates(), max_size=4))

    def test_total(self) -> None:
        """``total``, which readers show for several aggregates, must agree with ``fold``."""

        def law(values: list[Any]) -> None:
            total, folded = self.monoid.total(iter(values)), self.monoid.fold(values)
            self._same("total(values)", total, "fold(values)", folded)

        self._for_all(law, _needed("hypothesis.strategies").lists(self.aggregates(), max_size=4))

    def test_equal_aggregates_have_equal_bytes(self) -> None:
        """The same deltas must give the same bytes, in any grouping, and in any order if the monoid is commutative."""
        st = _needed("hypothesis.strategies")
        fold = self.monoid.fold

        def law(orders: tuple[list[Any], list[Any]], cut: int) -> None:
            values, other_order = orders
            halves = self.monoid.combine(fold(values[:cut]), fold(values[cut:]))
            self._same("fold(values)", fold(values), f"the fold of values[:{cut}] and values[{cut}:]", halves)
            if self.monoid.commutative:
                self._same("fold(values)", fold(values), "fold(other_order)", fold(other_order))

        orders = st.lists(self.aggregates(), max_size=4).flatmap(lambda v: st.tuples(st.just(v), st.permutations(v)))
        self._for_all(law, orders, st.integers(0, 4))

    def test_encoding(self) -> None:
        """A decoded aggregate must equal the original: the same type, value, bytes and combinations."""
        encode, decode, combine = self.monoid.encode, self.monoid.decode, self.monoid.combine

        def law(a: Any, b: Any) -> None:
            data = encode(a)
            _require(isinstance(data, bytes), f"encode(a) is not bytes but {data!r}")
            decoded = decode(data)
            _require(type(decoded) is type(a), f"decode(encode(a)) makes {decoded!r} of {a!r}: another type")
            _require(self.equal(decoded, a), f"decode(encode(a)) makes {decoded!r} of {a!r}")
            self._same("decode(encode(a))", decoded, "a", a)
            self._same("combine(decode(encode(a)), b)", combine(decoded, b), "combine(a, b)", combine(a, b))

        self._for_all(law, self.aggregates(), self.aggregates())

    def test_arguments_are_left_alone(self) -> None:
        """``combine`` and ``fold`` must not change their arguments: a retry uses them again."""
        monoid = self.monoid

        def law(a: Any, b: Any) -> None:
            used = {"a": a, "b": b, "identity": monoid.identity}
            before = {name: monoid.encode(value) for name, value in used.items()}
            monoid.combine(used["identity"], a)
            monoid.combine(a, b)
            monoid.fold([a, b])
            for name, value in used.items():
                _require(monoid.encode(value) == before[name], f"{name} was changed to {value!r}")

        self._for_all(law, self.aggregates(), self.aggregates())

    def test_presentation(self) -> None:
        """``present`` must have a result for each state, also for the identity and for one that was read from a store,
        and must not change the state: it may be combined further."""
        monoid = self.monoid

        def law(a: Any) -> None:
            for what, state in {"a": a, "decode(encode(a))": monoid.decode(monoid.encode(a))}.items():
                before = monoid.encode(state)
                try:
                    monoid.present(state)
                except Exception as err:
                    raise AssertionError(f"present({what}) fails for {state!r}: {type(err).__name__}: {err}") from err
                _require(monoid.encode(state) == before, f"present({what}) changes {what} to {state!r}")

        law(monoid.identity)
        self._for_all(law, self.aggregates())

    def test_pickling(self) -> None:
        """A monoid must reach the workers unchanged."""
        try:
            copy = self.pickler.loads(self.pickler.dumps(self.monoid))
        except Exception as err:
            raise AssertionError(f"cannot be pickled: {err}; for lambdas set pickler = cloudpickle") from err
        for fact in ("name", "commutative", "idempotent", "native", "needs_value"):
            got, wanted = getattr(copy, fact), getattr(self.monoid, fact)
            _require(got == wanted, f"{fact} is {got!r} after pickling, {wanted!r} before")

        def law(a: Any, b: Any) -> None:
            self._same("combine(a, b) after pickling", copy.combine(a, b), "before", self.monoid.combine(a, b))

        self._for_all(law, self.aggregates(), self.aggregates())

    def _same(self, left: str, a: Any, right: str, b: Any) -> None:
        _require(self.monoid.encode(a) == self.monoid.encode(b), f"{left} is {a!r}, but {right} is {b!r}")

    def _for_all(self, law: Callable[..., None], *strategies: Any) -> None:
        # Hypothesis gets the inner function, because it refuses a test method that several subclasses inherit. No
        # deadline: the laws say nothing about speed, and a busy machine must not make them fail.
        hypothesis = _needed("hypothesis")
        hypothesis.settings(deadline=None)(hypothesis.given(*strategies)(law))()


def _require(holds: bool, problem: str) -> None:
    """Raise an AssertionError. Unlike assert, it shows its problem in any module, and works with ``python -O``."""
    if not holds:
        raise AssertionError(problem)


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise ImportError(f"MonoidLaws needs {module.partition('.')[0]}: pip install 'murmur-beam[test]'") from err
