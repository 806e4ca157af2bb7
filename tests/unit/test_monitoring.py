"""The alert rules, the dashboards and the pages about them match the metrics that the code declares."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from tests.unit.metrics import REPOSITORY, declared, series

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = REPOSITORY / "monitoring"
RULES = sorted((FOLDER / "alerts").glob("*.yml"))
ALERTS = {
    rule["alert"]: rule
    for file in RULES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
}
NAME = re.compile(r"\b(?:cachesync|http)_[a-z0-9_]+\b")
# A series of one value every 15 seconds for 20 minutes.
ONE, NONE, GROWS = "1x80", "0x80", "0+5x80"

# By alert: series for which it fires within 20 minutes, and series for which it does not.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "CacheSyncTargetDown": (
        {'up{job="sa"}': NONE},
        {
            'up{job="sa"}': ONE,
            'up{job="another"}': NONE,
            # A triggerer without work serves no metrics.
            'up{job="triggerer",instance="a"}': ONE,
            'up{job="triggerer",instance="b"}': NONE,
        },
    ),
    "CacheSyncBreakerOpen": (
        {'cachesync_open_breakers{job="sa"}': ONE},
        # For half a minute.
        {'cachesync_open_breakers{job="sa"}': "1 1 0x78"},
    ),
    "CacheSyncRedisRefusesWrites": (
        {'cachesync_applied_total{service="sb",effect="refused"}': GROWS},
        {
            'cachesync_redis_refuses_commands{job="sb"}': NONE,
            'cachesync_applied_total{service="sb",effect="advanced"}': GROWS,
        },
    ),
    "CacheSyncRequestsShed": (
        {'http_requests_shed_total{job="sa",kind="read"}': GROWS},
        {'http_requests_shed_total{job="sa",kind="read"}': "7x80"},
    ),
    "CacheSyncUnpublished": (
        {'cachesync_unpublished_total{job="sa",reason="_MSG_TIMED_OUT"}': GROWS},
        {'cachesync_unpublished_total{job="sa",reason="_MSG_TIMED_OUT"}': "7x80"},
    ),
    "CacheSyncEntitySuspended": (
        {'cachesync_suspended{job="sa",entity="student"}': ONE},
        {'cachesync_suspended{job="sa",entity="student"}': NONE},
    ),
    "CacheSyncNoRelay": ({}, {"cachesync_backlog": NONE}),
    "CacheSyncBacklogOld": (
        {"cachesync_backlog_age_seconds": "0+15x80"},
        {"cachesync_backlog_age_seconds": "20x80"},
    ),
    "CacheSyncChangesRejected": (
        {'cachesync_unrelayable_total{entity="student",reason="MSG_SIZE_TOO_LARGE"}': GROWS},
        {'cachesync_unrelayable_total{entity="student",reason="MSG_SIZE_TOO_LARGE"}': "7x80"},
    ),
    "CacheSyncCaptureLost": (
        {'cachesync_capture_lost{entity="student"}': ONE},
        {'cachesync_capture_lost{entity="student"}': NONE},
    ),
    # Times begin with 0 in these tests. A clock that is wrong by an hour changes nothing.
    "CacheSyncCatalogUnchecked": (
        {"cachesync_catalog_check_timestamp_seconds": "3600x80"},
        {"cachesync_catalog_check_timestamp_seconds": "-3600+15x80"},
    ),
    "CacheSyncNoStream": (
        {
            'cachesync_streams{service="sa"}': "1x10 _x70",
            'cachesync_streams{service="sb"}': ONE,
        },
        {'cachesync_streams{service="sa"}': ONE, 'cachesync_streams{service="sb"}': ONE},
    ),
    "CacheSyncStreamPaused": (
        {'cachesync_paused{service="sa"}': ONE},
        {'cachesync_paused{service="sa"}': NONE},
    ),
    "CacheSyncWorkRestarting": (
        {'cachesync_restarts_total{work="relay"}': GROWS},
        # Two within minutes, of which Prometheus makes a little more.
        {'cachesync_restarts_total{work="relay"}': "3x10 4 5x10 _x58"},
    ),
    "CacheSyncConsumerLag": (
        {'cachesync_consumer_lag_seconds{service="sa",topic="cachesync.student",partition="0"}': "0+15x80"},
        {'cachesync_consumer_lag_seconds{service="sa",topic="cachesync.student",partition="0"}': "20x80"},
    ),
    "CacheSyncLettersParked": (
        {'cachesync_parked_letters{service="sa"}': ONE},
        {'cachesync_parked_letters{service="sa"}': NONE},
    ),
    "CacheSyncReconciliationDrift": (
        {'cachesync_reconciliation_drift{service="sa",entity="student",finding="stale"}': ONE},
        {'cachesync_reconciliation_drift{service="sa",entity="student",finding="stale"}': NONE},
    ),
    "CacheSyncReconciliationFailed": (
        {'cachesync_reconciliation_drift{service="sa",entity="student",finding="failed"}': ONE},
        {
            'cachesync_reconciliation_drift{service="sa",entity="student",finding="failed"}': NONE,
            "cachesync_reconciliation_unfinished_seconds": "60x80",
        },
    ),
    "CacheSyncReconciliationOverdue": (
        {'cachesync_reconciliation_timestamp_seconds{service="sa"}': "-93000x80"},
        {'cachesync_reconciliation_timestamp_seconds{service="sa"}': "-86400x80"},
    ),
    "CacheSyncLiveCheckSilent": (
        {'cachesync_live_check_last_look_timestamp_seconds{service="sa"}': "3600x80"},
        {'cachesync_live_check_last_look_timestamp_seconds{service="sa"}': "-3600+15x80"},
    ),
    "CacheSyncBehind": (
        {'cachesync_live_check_oldest_unseen_age_seconds{service="sa"}': "0+15x80"},
        {'cachesync_live_check_oldest_unseen_age_seconds{service="sa"}': "2x80"},
    ),
    "CacheSyncViolations": (
        {'cachesync_live_check_violations_total{service="sa",entity="student",kind="behind"}': GROWS},
        {'cachesync_live_check_violations_total{service="sa",entity="student",kind="behind"}': "7x80"},
    ),
    "CacheSyncRedisUnusable": (
        {'cachesync_live_check_redis_usable{service="sa"}': NONE},
        {'cachesync_live_check_redis_usable{service="sa"}': ONE},
    ),
    "CacheSyncTriggersLost": (
        {'cachesync_live_check_capture_lost{entity="student"}': ONE},
        {'cachesync_live_check_capture_lost{entity="student"}': NONE},
    ),
}


def expressions() -> dict[str, str]:
    """Every expression of the rules and the dashboards, by where it is."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for file in (FOLDER / "dashboards").glob("*.json"):
        dashboard: dict[str, Any] = json.loads(file.read_text())
        found |= {
            f"{file.stem}: {panel['title']} {target['refId']}": target["expr"]
            for panel in dashboard["panels"]
            for target in panel["targets"]
        }
        found |= {
            f"{file.stem}: {variable['name']}": variable["query"]
            for variable in dashboard["templating"]["list"]
        }
    return found


def test_alerts_and_dashboards_use_only_metrics_that_a_process_exports() -> None:
    unknown = {
        place: names
        for place, expression in expressions().items()
        if (names := set(NAME.findall(expression)) - series())
    }
    assert len(expressions()) > 50
    assert not unknown


def test_every_alert_is_described_with_what_to_do() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert rule["annotations"]["summary"].endswith(".")


def test_reference_lists_exactly_the_declared_metrics() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = {line for line in page.splitlines() if line.startswith("| `")}
    lines = {
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | "
        f"{metric.documentation.rstrip('.')} |"
        for metrics in declared().values()
        for metric in metrics
    }
    assert listed == lines


def test_each_alert_fires_for_its_fault_and_not_without(promtool: str, tmp_path: Path) -> None:
    subprocess.run([promtool, "check", "rules", *RULES], check=True, capture_output=True)
    assert CASES.keys() == ALERTS.keys()
    tests = [
        {
            "interval": "15s",
            "name": "with every fault" if fires else "without a fault",
            "input_series": [
                {"series": one, "values": values}
                for cases in CASES.values()
                for one, values in cases[0 if fires else 1].items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(count_over_time(ALERTS{{alertname="{name}",alertstate="firing"}}[20m]))',
                    "eval_time": "20m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
                for name in ALERTS
            ],
        }
        for fires in (True, False)
    ]
    file = tmp_path / "alerts.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rule) for rule in RULES], "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
