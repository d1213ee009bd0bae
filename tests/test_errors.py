from __future__ import annotations

import pickle

from fam_engine.errors import InputError


def test_an_error_crosses_to_another_process_whole() -> None:
    error = InputError("was found", code="E_TEST", where="file:3", hint="do that")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert str(copy) == str(error) == "error[E_TEST] file:3: was found (do that)"
