"""What commands print for people: names and paths as they are, whole where they are not for a terminal."""

from __future__ import annotations

import pytest

from keras_vae.cli import printing

NAME = "/photos/[red]of 2026[/red]/:smile:/[" + "long " * 20 + "]"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    printing.table({"title": NAME, "run": NAME, "psnr": 24.0})
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.strip() == NAME
    assert sum(NAME in row for row in rows) == 1
    printing.comparison({"settings": {"data": {NAME: NAME}}, "figures": {}, "picture": NAME})
    assert capsys.readouterr().out.count(NAME) == 3


def test_numbers_keep_what_matters_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    printing.table({"elbo": -12345.678, "rate": 0.00051234, "paths": ["a", "b"], "none": [], "by": {"x": 0.5}})
    printed = [row.replace("│", " ").split() for row in capsys.readouterr().out.splitlines()]
    expected = [
        ["elbo", "-12345.68"],
        ["rate", "0.0005123"],
        ["paths", "a"],
        ["b"],
        ["none", "none"],
        ["by", "x", "0.5"],
    ]
    assert [row for row in printed if row and row[0][0].isalpha()] == expected
