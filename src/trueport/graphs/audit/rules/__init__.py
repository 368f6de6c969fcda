"""The registry: every rule, in the order of the documentation."""

from __future__ import annotations

from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.rules.baked_length import BAKED_LENGTH
from trueport.graphs.audit.rules.hidden_keys import (
    FIRST_ROW_MASK,
    HIDDEN_TOKENS,
    INVERTED_MASK,
    LEAKING_MASK,
    MISPLACED_CAUSAL,
    MULTIPLIED_MASK,
    QUERY_AXIS_MASK,
)
from trueport.graphs.audit.rules.missing_window import MISSING_WINDOW
from trueport.graphs.audit.rules.nan_rows import NAN_ROWS
from trueport.graphs.audit.rules.no_mask import NO_MASK
from trueport.graphs.audit.rules.positions_ignore_mask import POSITIONS_IGNORE_MASK
from trueport.graphs.audit.rules.quantised_mask import QUANTISED_MASK
from trueport.graphs.audit.rules.reachable_fill import REACHABLE_FILL
from trueport.graphs.audit.rules.right_padding_only import RIGHT_PADDING_ONLY
from trueport.graphs.audit.rules.summed_masks import SUMMED_MASKS
from trueport.graphs.audit.rules.uneven_mask import UNEVEN_MASK
from trueport.graphs.audit.rules.unused_mask import UNUSED_MASK

RULES: tuple[Rule, ...] = (
    SUMMED_MASKS,
    REACHABLE_FILL,
    NAN_ROWS,
    UNUSED_MASK,
    NO_MASK,
    UNEVEN_MASK,
    BAKED_LENGTH,
    POSITIONS_IGNORE_MASK,
    RIGHT_PADDING_ONLY,
    MISSING_WINDOW,
    QUANTISED_MASK,
    MULTIPLIED_MASK,
    INVERTED_MASK,
    QUERY_AXIS_MASK,
    FIRST_ROW_MASK,
    LEAKING_MASK,
    MISPLACED_CAUSAL,
    HIDDEN_TOKENS,
)
