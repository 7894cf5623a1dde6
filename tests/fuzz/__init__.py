"""Calls that nobody thought of: drawn arguments for every operator of the namespace, right ones and wrong ones.

    python -m pytest tests/test_fuzz.py           some calls of each operator
    cd tests; python -m fuzz --minutes 30         a campaign (`make fuzz`)

Of a call with right arguments (`operators.py`), each result must be exactly that of the reference in float64: drawn
values are small whole numbers, so that every sum is exact in every dtype and no tolerance hides a fault. Of a call with
something changed at random (`changes.py`), kernel and fake kernel must say the same, either the same error, which names
the operator, or results of the same shapes, dtypes and strides, and then the reference's values.

A call is drawn as a description of plain values, so that one that fails can be printed and pasted into a test.
"""

from __future__ import annotations
