"""What people see: tables, pages, pictures."""

from typing import Any

Spec = dict[str, Any]  # a chart, in the words of Vega-Lite
Point = dict[str, Any]  # a row that a chart is drawn from
