"""Reads OpenMetrics from standard input with the strict reader of prometheus-client; fails if it does not take it."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

families = list(text_string_to_metric_families(sys.stdin.read()))
exemplars = [sample.exemplar for family in families for sample in family.samples if sample.exemplar]
print(json.dumps({
    "families": len(families),
    "traces": sorted({exemplar.labels["trace_id"] for exemplar in exemplars}),
    "units": {family.name: family.unit for family in families if family.unit},
}))
