"""
Takes away one guard at a time and looks whether its test notices.

    python tests/mutations.py [words that the test's or the file's name contains ...]

Each mutation is made in a copy of the repository. A survivor is a guard that no test holds; the
program's exit code is their number. A mutation whose text is no longer in the file is reported as
stale, and counts too.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

ROOT = Path(__file__).resolve().parents[1]

FUNCTIONS = "agentq/store/sql/functions"
LEDGER = "tests/store/test_ledger.py::test_"
SESSIONS = "tests/store/test_sessions.py::test_"
ADMISSION = "tests/store/test_admission.py::test_"
JOINS = "tests/store/test_joins.py::test_"
WORKERS = "tests/store/test_workers.py::test_"
STORED = "tests/store/test_effects.py::test_"
EFFECTS = "tests/agents/test_effects.py::test_"
CARRY = "tests/engine/test_carry.py::test_"
RELAY = "tests/relay/test_relay.py::test_"
NEAR = "tests/relay/test_neighbours.py::test_"
BUDGETS = "tests/store/test_budgets.py::test_"
SPENDING = "tests/agents/test_spending.py::test_"
JUDGE_FILE = "agentq/chaos/judge.py"
JUDGE = "tests/chaos/test_judge.py::test_"
TURNS = "tests/store/test_turns.py::test_"
PERMISSIONS = "tests/agents/test_permissions.py::test_"
RATES = "tests/broker/test_rates.py::test_"
BREAKERS = "tests/store/test_dependencies.py::test_"
NEEDING = "tests/agents/test_dependencies.py::test_"
REPAIRS = "tests/agents/test_repairs.py::test_"
TELLING = "tests/cli/test_effect.py::test_"
KINDS = "tests/policies/test_kinds.py"
SCHEMA = "tests/store/test_schema.py::test_"
APPROVALS = "tests/store/test_approvals.py::test_"
PEOPLE = "tests/people/test_"
TRACES = "tests/store/test_traces.py::test_"
TABS = "tests/flower/test_tabs.py::test_"
ROLES = "tests/flower/test_roles.py::test_"
LETTERS = "tests/flower/test_letters.py::test_"
BURIED = "tests/store/test_dead_letters.py::test_"
REDRIVEN = "tests/redrives/test_redrives.py::test_"
LETTERBOX = "tests/relay/test_letterbox.py::test_"
MEMORY = "tests/store/test_memory.py::test_"
REMEMBERING = "tests/agents/test_memory.py::test_"
PLACES = "tests/store/test_placement.py::test_"
CROWD = "tests/store/test_many_tenants.py::test_"
RECOVERY = "tests/store/test_recovery.py::test_"
GRAPHS = "tests/adapters/test_langgraph.py::test_"
DURABLE = "tests/adapters/test_pydantic_ai.py::test_"
CLERKS = "tests/adapters/test_openai_agents.py::test_"
VAULT = "tests/store/test_vault.py::test_"
TOKENS = "tests/broker/test_tokens.py::test_"
ODD = "tests/policies/test_anomalies.py::test_"
TALLIES = "tests/store/test_anomalies.py::test_"
WATCH = "tests/relay/test_anomalies.py::test_"
HEARD = "tests/agents/test_model_http.py::test_"
STATES = "tests/client/test_tenant_states.py::test_"
PLANS = "tests/store/test_plans.py::test_"
SPENT = "tests/store/test_spend.py::test_"
RETENTION = "tests/store/test_retention.py::test_"
SEAM = "tests/contract/test_seam.py::test_"
ON_RABBIT = "tests/contract/test_fleet.py::test_"
SUMMED = "tests/store/test_spend.py::test_"
WASTED = "tests/seeing/test_waste.py::test_"
CHOSEN = "tests/agents/test_choices.py::test_"
ERASING = "tests/contract/test_erasing.py::test_"
OVER_TLS = "tests/contract/test_tls.py::test_"


@dataclass(frozen=True)
class Mutation:
    """One guard gone: in `file`, the first `old` becomes `new`, and `test` must fail."""

    file: str
    old: str
    new: str
    test: str


def sql(old: str, new: str, test: str) -> Mutation:
    """In the one file of functions that has it."""
    holders = [file for file in sorted((ROOT / FUNCTIONS).glob("*.sql")) if old in file.read_text("utf-8")]
    # Which one it takes away must not depend on what stands in files that nobody thought of.
    assert len(holders) <= 1, f"{[file.name for file in holders]} have {old!r}: name one with Mutation()"
    return Mutation(str(holders[0].relative_to(ROOT)) if holders else f"{FUNCTIONS}/ledger.sql", old, new, test)


FENCE = "and concat(l.state) = 'running' and l.fence = p_fence and l.fence_token = p_token\n    returning l.* into e;"
HELD_BY_FENCE = (
    "                      and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token) then\n"
    "        return query select 'superseded'"
)

MUTATIONS = [
    # Flower refuses the network without a login, and only that; it needs no agents
    Mutation(
        "agentq/flower/__init__.py",
        " and not is_loopback(settings.flower_address)",
        "",
        "tests/flower/test_flower.py::test_what_is_allowed",
    ),
    Mutation(
        "agentq/flower/__init__.py",
        ' or os.environ.get("FLOWER_AUTH")',
        "",
        "tests/flower/test_flower.py::test_the_login_of_flowers_own_counts",
    ),
    Mutation(
        "agentq/flower/__init__.py",
        "if login and not (user and password):",
        "if False:",
        "tests/flower/test_flower.py::test_the_network_needs_a_login",
    ),
    Mutation(
        "agentq/flower/tabs.py",
        "        return Client(settings, Registry())",
        "        raise",
        "tests/flower/test_letters.py::test_flower_may_have_no_agents",
    ),
    # What may be started is named well
    Mutation(
        "agentq/client/tenants.py",
        'sorted({valid_name("agent", name) for name in agents})',
        "sorted(set(agents))",
        "tests/cli/test_audit.py::test_bad_restrictions_are_refused",
    ),
    Mutation(
        "agentq/broker/line.py",
        "        time.sleep(GONE_S)  # nobody has used it yet, or somebody has deleted it just now\n",
        "",
        SEAM + "who_listens_hears_of_the_end_of_a_queue_that_comes_back_at_once",
    ),
    Mutation(
        "agentq/broker/publisher.py",
        "            time.sleep(GONE_S)\n            self._ask(",
        "            self._ask(",
        SEAM + "who_listens_hears_of_the_end_of_a_queue_that_comes_back_at_once",
    ),
    Mutation(
        "agentq/broker/listener.py",
        ", on_cancel=self._on_cancel)",
        ")",
        ON_RABBIT + "a_queue_that_is_deleted_while_its_listener_starts_comes_back",
    ),
    Mutation(
        "agentq/broker/connection.py",
        'return facts | {"server_hostname": urlsplit(settings.broker_url).hostname}',
        "return facts",
        OVER_TLS + "a_broker_of_another_name_is_refused",
    ),
    Mutation(
        "agentq/broker/connection.py",
        '"ssl_check_hostname": True',
        '"ssl_check_hostname": False',
        OVER_TLS + "a_broker_of_another_name_is_refused",
    ),
    Mutation(
        "agentq/store/sql/operators.sql",
        "unnest(former_queues || array[own.queue, own.queue || '.dead'])",
        "unnest(former_queues)",
        ERASING + "a_broker_that_is_away_does_not_stop_an_erasure",
    ),
    Mutation(
        "agentq/client/tenants.py",
        "                self._publisher.remove(queue)\n",
        "",
        ERASING + "an_erased_tenants_queues_go_with_it",
    ),
    Mutation(
        "agentq/store/sql/placement.sql",
        "and not (t.state = 'paused' and t.agents is not distinct from '{}')",
        "",
        ERASING + "an_erased_tenants_queues_go_with_it",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "                self._letters.announce_again(tenant)\n",
        "",
        ERASING + "who_is_let_in_again_keeps_its_queues",
    ),
    Mutation(
        "agentq/store/dead_letters.py",
        'self.cause_text.partition(": ")[0]',
        "self.cause_text",
        ERASING + "a_notice_of_a_dead_letter_quotes_nothing",
    ),
    # An approval that cannot be read leaves the others to those who decide
    Mutation(
        "agentq/store/approvals.py",
        "return [self._told(row) for row in rows]",
        "return [self._opened(row) for row in rows]",
        "tests/store/test_approvals.py::test_one_that_cannot_be_read_is_listed_beside_the_others",
    ),
    # Notices of dead letters are in no step's way
    Mutation(
        "agentq/broker/publisher.py",
        "        self._others = Line(connect)",
        "        self._others = self._wakes",
        "tests/broker/test_publisher.py::test_wake_ups_do_not_wait_for_anything_else",
    ),
    # A burst that no analyze has seen is found by its keys
    Mutation(
        "agentq/store/sql/functions/admission.sql",
        "returns jsonb language plpgsql set enable_sort = off as $$",
        "returns jsonb language plpgsql as $$",
        "tests/store/test_plans.py::test_a_burst_that_no_analyze_has_seen_is_found_by_its_keys",
    ),
    Mutation(
        "agentq/store/migrations/versions/0014_plans.py",
        "set statistics 0",
        "set statistics -1",
        "tests/store/test_plans.py::test_a_burst_that_no_analyze_has_seen_is_found_by_its_keys",
    ),
    # RabbitMQ: what it does not take, or has no queue for, is noticed; what runs holds no message
    Mutation(
        "agentq/broker/line.py",
        "            mandatory=self.confirms is not None,\n",
        "            mandatory=False,\n",
        SEAM + "wake_ups_arrive_once_each_and_in_order[rabbitmq-1]",
    ),
    Mutation(
        "agentq/broker/confirms.py",
        "self._refused += self._close(tag, multiple)",
        "self._close(tag, multiple)",
        SEAM + "a_message_that_is_not_taken_is_told[rabbitmq]",
    ),
    Mutation(
        "agentq/broker/line.py",
        "            self._mend(error.queues)\n",
        "",
        SEAM + "a_queue_that_lost_its_leader_is_made_anew[rabbitmq]",
    ),
    Mutation(
        "agentq/broker/line.py",
        "producer.connection.channel() if self.confirms else",
        "producer.channel if self.confirms else",
        SEAM + "a_question_about_a_queue_that_is_not_there_disturbs_nothing[rabbitmq]",
    ),
    Mutation(
        "agentq/broker/publisher.py",
        "            elif not channel.queue_declare(queue=name, passive=True).consumer_count:",
        "            else:",
        SEAM + "a_queue_with_a_listener_is_not_removed[rabbitmq]",
    ),
    Mutation(
        "agentq/broker/queues.py",
        'return {"x-queue-type": "quorum", **limit}',
        "return {}",
        SEAM + "queues_are_quorum_queues[rabbitmq]",
    ),
    Mutation(
        "agentq/worker.py",
        "            self.app.tasks[STEP_TASK].acks_late = False\n",
        "",
        ON_RABBIT + "a_long_step_holds_no_message[rabbitmq]",
    ),
    Mutation(
        "agentq/worker.py",
        "or self._came_too_often(message)",
        "",
        ON_RABBIT + "a_submission_that_ends_its_workers_is_kept[rabbitmq]",
    ),
    # adapters: what ran is not run again, what costs is held, what was refused is not done
    Mutation(
        "agentq/adapters/langgraph/node.py",
        "        if known[0] != run:\n            known[:] = [run, 0]\n",
        "",
        GRAPHS + "langgraph_s_own_retries_repeat_no_effect",
    ),
    Mutation(
        "agentq/adapters/langgraph/graph.py",
        "if not state.anchor or state.anchored_in != ctx.session_id:",
        "if True:",
        GRAPHS + "an_interrupt_is_answered_by_people",
    ),
    Mutation(
        "agentq/adapters/langgraph/graph.py",
        "if self._resume is None and not answer.granted:",
        "if False:",
        GRAPHS + "a_refused_interrupt_ends_the_session",
    ),
    Mutation(
        "agentq/adapters/langgraph/thread.py",
        "if text not in self._known and",
        "if False and",
        GRAPHS + "what_cannot_be_read_back_is_refused_when_written",
    ),
    Mutation(
        "agentq/adapters/langgraph/money.py",
        "raise_error = True",
        "raise_error = False",
        GRAPHS + "a_model_that_no_budget_allows_is_not_asked",
    ),
    Mutation(
        "agentq/adapters/replay.py",
        "len(journal) + len(replay.added) >= self._replay_max",
        "False",
        DURABLE + "a_long_run_continues_as_new_from_its_history",
    ),
    Mutation(
        "agentq/adapters/replay.py",
        "if one != other:",
        "if True:",
        DURABLE + "a_long_run_continues_as_new_from_its_history",
    ),
    Mutation(
        "agentq/adapters/replay.py",
        "replay.suspended = not running.done()",
        "replay.suspended = False",
        DURABLE + "each_unit_is_one_span",
    ),
    Mutation(
        "agentq/adapters/pydantic_ai.py",
        'granted if said["granted"] else',
        "granted if True else",
        DURABLE + "the_model_is_told_of_a_refusal",
    ),
    Mutation(
        "agentq/adapters/openai_agents.py",
        'if said["granted"]:',
        "if True:",
        CLERKS + "the_model_is_told_of_a_refusal",
    ),
    Mutation(
        "agentq/adapters/openai_agents.py",
        "tracing_disabled=True",
        "tracing_disabled=False",
        CLERKS + "nothing_is_told_to_the_sdk_s_tracing",
    ),
    Mutation(
        "agentq/adapters/openai_agents.py",
        'if again or failure.kind == "unknown" or',
        "if",
        CLERKS + "what_nobody_declared_is_not_repeated",
    ),
    # rates: what was not used, and no more, is given back
    Mutation(
        "agentq/agents/spending.py",
        "        call.give_back(charge)\n",
        "",
        RATES + "a_step_that_used_less_lets_the_next_one_go",
    ),
    Mutation(
        "agentq/policies/rates.py",
        "min(part.took_s * unused, part.left_s - elapsed)",
        "part.took_s * unused",
        RATES + "a_call_gives_back_what_it_did_not_use",
    ),
    # tokens: for their tenants and agents, while they live, and seen by nobody
    Mutation(
        "agentq/store/tokens.py", "if tenant not in tenants:", "if False:", TOKENS + "a_token_is_for_its_tenants_alone"
    ),
    Mutation(
        "agentq/store/tokens.py",
        "if agents is not None and agent not in agents:",
        "if False:",
        TOKENS + "a_token_is_for_its_agents_alone",
    ),
    Mutation(
        "agentq/store/tokens.py",
        "if not (hmac.compare_digest(_digest(token), bytes(digest)) and live):",
        "if not live:",
        TOKENS + "who_has_no_good_token_stays_outside",
    ),
    Mutation(
        "agentq/store/tokens.py",
        "bytes(digest)) and live):",
        "bytes(digest))):",
        TOKENS + "who_has_no_good_token_stays_outside",
    ),
    Mutation(
        "agentq/submissions.py",
        "elif self._required or",
        "elif",
        TOKENS + "a_tenant_without_tokens_needs_none_unless_they_are_required",
    ),
    Mutation(
        "agentq/submissions.py",
        "        body = without_tokens(body)\n",
        "",
        TOKENS + "no_trace_of_a_token_stays",
    ),
    Mutation(
        "agentq/poison.py",
        "body, reason = without_tokens(body), without_tokens(",
        "body, reason = body, without_tokens(",
        TOKENS + "no_trace_of_a_token_stays",
    ),
    Mutation(
        "agentq/worker.py",
        "                _hide_arguments(message)\n",
        "",
        "tests/broker/test_fleet.py::test_a_token_is_seen_by_nobody_but_the_door",
    ),
    Mutation(
        "agentq/store/operators.py",
        'destroyed = len(run(connection, KEYS["destroy"], {"tenant": name}))',
        "destroyed = 1",
        "tests/cli/test_keys.py::test_an_erased_tenant_cannot_be_decrypted",
    ),
    Mutation(
        "agentq/engine.py",
        "outcome = self.act(attempt) if claim.unreadable is None else _unreadable(claim)",
        "outcome = self.act(attempt)",
        "tests/test_encryption.py::test_a_payload_that_was_altered_is_a_dead_letter",
    ),
    Mutation(
        "agentq/store/recovery.py",
        "            moving.into_fork(vault, connection, tenant=tenant, session=session_id, step=step_id, fork=fork)\n",
        "",
        "tests/test_encryption.py::test_no_table_holds_a_word_of_a_payload",
    ),
    Mutation(
        "agentq/store/traces.py",
        "                raise UnknownSession(tenant, str(session_id))\n            trace_id",
        "                found = [(session_id,)]\n            trace_id",
        "tests/client/test_isolation.py::test_no_question_of_a_tenant_is_answered_with_anothers_rows",
    ),
    # tenants: isolated, bounded, and told where they came from
    Mutation(
        "agentq/agents/model/turn.py",
        "                listen(model)\n",
        "",
        HEARD + "what_an_answer_says_of_its_limits_holds_for_the_fleet[False]",
    ),
    Mutation(
        "agentq/policies/rates.py",
        "_place(provider, model) if model is not None else provider",
        "provider",
        HEARD + "a_refusal_of_a_model_closes_that_model",
    ),
    sql(
        "    if not agentq.agents_allowed(p_tenant, p_session) then",
        "    if false then",
        PERMISSIONS + "nor_brought_back",
    ),
    sql(
        "where name = p_tenant and not s.agent = any (agents)) then return 'agent_refused'",
        "where false) then return 'agent_refused'",
        PERMISSIONS + "nor_brought_back",
    ),
    sql(
        "select agent from above union all select agent from beneath",
        "select agent from above",
        PERMISSIONS + "nor_brought_back",
    ),
    sql(
        "where name = p_tenant and state = 'draining') then return 'tenant_closed'",
        "where false) then return 'tenant_closed'",
        STATES + "a_draining_tenant_ends_what_it_has_and_takes_nothing",
    ),
    sql(
        "        if v_flowing and e.priority > 0 and p_next is not null then",
        "        if false then",
        ADMISSION + "a_batch_gives_way_between_its_steps",
    ),
    sql("and l.priority < e.priority and l.due_at", "and l.due_at", ADMISSION + "a_batch_gives_way_between_its_steps"),
    sql(
        "        perform agentq.wait_for_turn(p_tenant, p_session, s.concurrency_key, p_now);\n",
        "        null;\n",
        TURNS + "one_that_is_brought_back_waits_for_its_turn",
    ),
    sql(
        "    if agentq.turn_is_anothers(p_tenant, p_session) then",
        "    if false then",
        TURNS + "one_that_is_brought_back_waits_for_its_turn",
    ),
    Mutation(
        "agentq/store/sql/security.sql",
        "'operator_action', 'refused_submission',",
        "'operator_action',",
        SCHEMA + "a_tenant_sees_its_own_rows_only[refused_submission]",
    ),
    Mutation(
        "agentq/store/sql/security.sql",
        "force row level security",
        "no force row level security",
        SCHEMA + "every_relation_that_postgres_has_is_guarded",
    ),
    Mutation(
        "agentq/store/operators.py",
        "            if running:\n",
        "            if False:\n",
        RETENTION + "a_tenant_at_work_is_not_erased",
    ),
    Mutation(
        "agentq/store/operators.py",
        '            return list(run(connection, SQL["close_tenant"], {"name": name})[0])\n',
        "            return []\n",
        RETENTION + "an_erased_tenant_takes_nothing_new_until_somebody_says_what",
    ),
    Mutation(
        "agentq/store/sql/operators.sql",
        "from agentq.tenant t where t.name = %(name)s for update;",
        "from agentq.tenant t where t.name = %(name)s;",
        RETENTION + "a_start_that_has_not_committed_is_erased_too",
    ),
    sql(
        "v_left int := p_max;",
        "v_left int := p_max * 9;",
        RETENTION + "a_batch_is_small_whatever_the_number_of_tenants",
    ),
    Mutation(
        "agentq/store/sessions.py",
        'cursor.execute(SQL["add_like"].encode(), {"tenant": tenant, "like": create_with})',
        "pass",
        "tests/client/test_client.py::test_a_tenant_is_created_from_a_policy",
    ),
    Mutation(
        "agentq/store/budgets.py",
        '            run(connection, SQL["review_alerts"], key)\n',
        "",
        BUDGETS + "thresholds_follow_a_changed_limit",
    ),
    Mutation(
        "agentq/store/rates.py",
        "            record(\n",
        "            (lambda *_, **__: None)(\n",
        "tests/client/test_audit.py::test_every_write_leaves_an_audit_row[rates.set]",
    ),
    # encryption: bound to place, row and tenant
    Mutation(
        "agentq/store/vault.py",
        "*(_part(part) for part in place), ",
        "",
        VAULT + "a_ciphertext_that_was_moved_does_not_open",
    ),
    Mutation(
        "agentq/store/vault.py",
        'parts = [b"agentq1", tenant.encode(), ',
        'parts = [b"agentq1", ',
        VAULT + "the_tenant_is_bound_even_under_one_key",
    ),
    Mutation("agentq/store/vault.py", "row, number.to_bytes", "number.to_bytes", VAULT + "an_altered_byte_is_noticed"),
    Mutation(
        "agentq/store/vault.py",
        'return f"agentq data key {number} of {tenant}".encode()',
        'return b"agentq data key"',
        VAULT + "another_tenant_cannot_open_it",
    ),
    Mutation(
        "agentq/store/sealing.py",
        "if expected is not None and row[:16] != expected:",
        "if False:",
        VAULT + "a_claim_is_read_and_a_moved_state_is_not",
    ),
    Mutation(
        "agentq/store/sealing.py",
        'return ("message.body", session, step, number)',
        'return ("message.body", session, step)',
        VAULT + "a_history_in_another_order_is_not_read",
    ),
    Mutation(
        "agentq/store/vault.py",
        'sealed["cause_text"] = ',
        'facts["cause_text"] = ',
        VAULT + "failures_keep_their_kind_and_cause_but_not_their_words",
    ),
    Mutation(
        "agentq/store/providers.py",
        "if mode & (stat.S_IRWXG | stat.S_IRWXO):",
        "if False:",
        VAULT + "the_key_file_is_for_its_owner_alone",
    ),
    sql(
        "if get_byte(p_input, 0) <> 1 and exists (",
        "if false and exists (",
        VAULT + "without_a_provider_what_is_sealed_is_refused",
    ),
    # I1: one session for a key
    sql("s.input_hash = p_hash as same", "true as same", SESSIONS + "a_key_used_with_another_input_is_refused"),
    Mutation(
        "agentq/store/schema/ledger.py",
        'Index("session_key", "tenant", "key", unique=True',
        'Index("session_key", "tenant", "key", unique=False',
        SCHEMA + "migrations_make_what_the_metadata_says",
    ),
    sql(
        "    on conflict (tenant, key) where key is not null do nothing;",
        "    ;",
        SESSIONS + "fifty_starts_with_one_key_make_one_session",
    ),
    Mutation(
        "agentq/store/sessions.py",
        'raise KeyConflict("session key", str(new.key))',
        "return session_id, False",
        SESSIONS + "one_refused_start_refuses_the_whole_batch",
    ),
    # claims
    sql("and concat(l.state) = 'queued' and l.due_at", "and l.due_at", LEDGER + "one_of_many_claims_is_granted"),
    sql(
        "and l.due_at <= v_now and l.quarantine",
        "and l.quarantine",
        LEDGER + "a_queued_step_before_its_time_is_not_due",
    ),
    sql(
        "and l.quarantine = p_quarantine\n        returning",
        "\n        returning",
        LEDGER + "a_suspect_is_refused_outside_quarantine_and_others_inside",
    ),
    sql("se.state = 'running' and se.agent", "se.agent", LEDGER + "a_step_of_a_paused_session_is_held"),
    sql(
        "se.state = 'running' and se.agent || '@' || se.agent_version = any (p_serves)",
        "se.state = 'running'",
        LEDGER + "a_worker_without_the_agents_version_is_refused",
    ),
    sql(
        "where te.name = p_tenant and te.state <> 'paused'\n",
        "where te.name = p_tenant\n",
        LEDGER + "a_step_of_a_paused_tenant_waits_for_admission",
    ),
    sql(
        "and wo.worker_id = p_worker and wo.state in ('live', 'draining')\n",
        "and wo.worker_id = p_worker\n",
        LEDGER + "a_worker_taken_for_dead_claims_nothing",
    ),
    sql(
        "and (p_quarantine or wo.worker_group in (te.worker_group, '*')))",
        ")",
        PLACES + "only_its_group_runs_a_tenants_steps",
    ),
    sql(
        "wo.worker_group in (te.worker_group, '*')",
        "wo.worker_group = '*'",
        PLACES + "only_its_group_runs_a_tenants_steps",
    ),
    sql("(p_quarantine or wo.worker_group", "(false or wo.worker_group", PLACES + "quarantine_serves_every_group"),
    Mutation(
        "agentq/store/sql/ledger.sql",
        "or t.former_queues <> '{}' and not e.quarantine and e.queued_at < t.placed_at)",
        ")",
        PLACES + "what_was_queued_before_a_move_is_missed_at_once",
    ),
    # many tenants: nothing walks through those that have nothing to do
    sql(
        "where t.name = any (coalesce(p_names, array(",
        "where t.name = any ((array(select name from agentq.tenant) || array(",
        CROWD + "few_tenants_are_read",
    ),
    Mutation(
        "agentq/store/sql/fairness.sql",
        "where sharing and shared_at",
        "where shared_at",
        CROWD + "few_tenants_are_read",
    ),
    Mutation("agentq/store/sql/fairness.sql", " where t.sharing and not", " where not", CROWD + "few_tenants_are_read"),
    Mutation(
        "agentq/store/ledger.py",
        "DepthPlace(place.offset + limit) if busy >= limit else DepthPlace(name=found[limit - 1].tenant)",
        "DepthPlace(name=found[limit - 1].tenant)",
        CROWD + "pages_show_each_tenant_once_and_work_first",
    ),
    Mutation(
        "agentq/store/sql/fairness.sql",
        "or s.name = any (%(ran)s::text[]));",
        "or false and s.name = any (%(ran)s::text[]));",
        "tests/store/test_fairness.py::test_time_is_kept_also_where_the_allowance_stays",
    ),
    Mutation(
        "agentq/broker/routes.py",
        "forget = now - self._asked_at > KEPT_S or",
        "forget = False and now - self._asked_at > KEPT_S or",
        PLACES + "who_has_not_asked_for_long_knows_nothing_any_more",
    ),
    Mutation(
        "agentq/broker/routes.py",
        "check = now - self._checked_at > CHECKED_S",
        "check = False",
        PLACES + "a_move_that_nobody_told_is_found_within_a_minute",
    ),
    Mutation(
        "agentq/store/sql/placement.sql",
        " where t.former_queues <> '{}' and t.placed_at > (select agentq.now()) - make_interval(secs => %(lately_s)s);",
        " where false and t.placed_at > (select agentq.now()) - make_interval(secs => %(lately_s)s);",
        PLACES + "who_asks_for_others_hears_of_a_move",
    ),
    Mutation(
        "agentq/store/turn.py",
        "self._again = [tenant for tenant, count in found.items() if count >= limit][: self._tenants]",
        "self._again = []",
        "tests/store/test_retention.py::test_tenants_take_turns_and_who_has_more_comes_again",
    ),
    Mutation(
        "agentq/relay/letterbox.py",
        "boards = self._boards | self._next_unknown()",
        "boards = self._boards",
        LETTERBOX + "what_an_earlier_process_left_is_taken_down",
    ),
    Mutation(
        "agentq/store/sql/placement.sql",
        "       or exists (select from agentq.shard_queue(q.queue) s",
        "       or false and exists (select from agentq.shard_queue(q.queue) s",
        PLACES + "a_shard_that_others_use_is_not_removed",
    ),
    sql("attempt = l.attempt + 1", "attempt = l.attempt", LEDGER + "one_of_many_claims_is_granted"),
    # I2, I3: settlements
    sql(FENCE, FENCE.replace("and l.fence = p_fence ", ""), LEDGER + "the_number_tells_apart_what_the_token_does_not"),
    sql(FENCE, FENCE.replace(" and l.fence_token = p_token", ""), LEDGER + "the_token_tells_apart_what_a_crash_forgot"),
    sql(
        FENCE,
        "and l.state = 'running'\n    returning l.* into e;",
        LEDGER + "a_late_worker_cannot_overwrite_its_successor",
    ),
    Mutation(
        "agentq/store/ledger.py",
        "        if not closed:\n            raise FenceLost(",
        "        if False:\n            raise FenceLost(",
        LEDGER + "of_two_settlements_at_once_one_counts",
    ),
    sql(
        "       and concat(state) = 'running' and fence_token = p_token for no key update;",
        "       and concat(state) = 'running' for no key update;",
        LEDGER + "the_token_tells_apart_what_a_crash_forgot",
    ),
    sql(
        "    if v_session not in ('running', 'paused') then\n        p_verdict := 'cancelled';",
        "    if false then\n        p_verdict := 'cancelled';",
        LEDGER + "a_step_settles_into_a_session_that_has_ended",
    ),
    sql(
        "attempt = case when p_verdict in ('release', 'postpone', 'await', 'park', 'repair') then",
        "attempt = case when false then",
        LEDGER + "a_released_step_costs_no_attempt",
    ),
    sql(
        "or p_plan ? 'branches'\n        or p_plan ? 'asks'",
        "or p_plan ? 'asks'",
        JOINS + "a_spawn_that_meets_a_cancellation_leaves_nothing_waiting",
    ),
    # admission
    sql(
        "    perform pg_advisory_xact_lock(1634166382, hashtext(p_tenant));\n",
        "",
        ADMISSION + "two_admissions_never_share_a_slot",
    ),
    sql(
        "v_room := least(greatest(v_cap - v_admitted, 0), p_max);",
        "v_room := p_max;",
        ADMISSION + "the_cap_is_exact",
    ),
    sql(
        "select state <> 'paused' and not shedding as flowing",
        "select state <> 'paused' as flowing",
        ADMISSION + "a_lowered_cap_sheds_and_recovers",
    ),
    sql(
        "select te.state <> 'paused' and not te.shedding into",
        "select te.state <> 'paused' into",
        ADMISSION + "a_chain_above_a_lowered_cap_waits_its_turn",
    ),
    sql(
        "select te.state <> 'paused' and not te.shedding into",
        "select te.state = 'active' and not te.shedding into",
        ADMISSION + "a_draining_tenant_finishes_what_it_has",
    ),
    sql(
        "update agentq.tenant set shedding = false where name = p_tenant and shedding;",
        "null;",
        ADMISSION + "a_lowered_cap_sheds_and_recovers",
    ),
    sql(
        "        v_wake := agentq.hand_on_slot(p_tenant, v_now);\n    end if;\n    if p_plan",
        "        null;\n    end if;\n    if p_plan",
        ADMISSION + "a_step_that_ends_hands_its_slot_on",
    ),
    sql("order by priority, due_at limit 1", "order by due_at limit 1", ADMISSION + "priority_first_then_age"),
    sql(
        "and e.tenant > hop.tenant order by",
        "and e.tenant < hop.tenant order by",
        ADMISSION + "every_tenant_with_a_backlog_is_found",
    ),
    Mutation(
        f"{FUNCTIONS}/sessions.sql",
        "        perform agentq.await_admission(p_tenant, v_wake);\n",
        "",
        ADMISSION + "a_child_that_ends_unrun_does_not_push_its_parent_past_the_cap[cancel]",
    ),
    Mutation(
        f"{FUNCTIONS}/recovery.sql",
        "        perform agentq.await_admission(p_tenant, v_wake);\n",
        "",
        ADMISSION + "a_child_that_ends_unrun_does_not_push_its_parent_past_the_cap[kill]",
    ),
    Mutation(
        f"{FUNCTIONS}/sessions.sql",
        "s.message), v_now);\n        perform agentq.await_admission(s.tenant, v_wake);\n",
        "s.message), v_now);\n",
        ADMISSION + "a_child_that_ends_unrun_does_not_push_its_parent_past_the_cap[expire]",
    ),
    # joins
    sql("and branch = p_branch and state = 'open';", "and branch = p_branch;", JOINS + "a_branch_is_closed_once"),
    sql("if not p_ok and not j.collect then", "if not p_ok then", JOINS + "collected_failures_are_results"),
    sql("if not p_ok and not j.collect then", "if false then", JOINS + "a_failed_branch_fails_the_session"),
    sql(
        "        if j.join_step is not null then",
        "        if false then",
        JOINS + "a_failure_within_a_collected_branch_is_collected",
    ),
    sql(
        "            perform agentq.cancel_join(p_tenant, p_session, p_join, p_now);\n",
        "",
        JOINS + "a_failure_within_a_collected_branch_is_collected",
    ),
    sql(
        "           and (p.state in ('failed', 'cancelled') or exists (",
        "           and (false and exists (",
        JOINS + "children_end_with_their_parent",
    ),
    # workers
    sql(
        "            if w.missing_since is null or w.seen_at > w.missing_since then",
        "            if w.missing_since is null then",
        WORKERS + "a_heartbeat_between_two_looks_outweighs_a_missing_lock",
    ),
    sql(
        "            if w.missing_since is null or w.seen_at > w.missing_since then",
        "            if false then",
        WORKERS + "a_dead_process_is_found_at_the_second_look",
    ),
    sql(
        "            elsif w.missing_since <= v_now - make_interval(secs => p_look_s) then",
        "            else",
        WORKERS + "two_looks_need_a_pause_between_them",
    ),
    sql(
        "if v_free or w.lease_until < v_now then",
        "if v_free then",
        WORKERS + "a_living_process_whose_lease_is_over_is_dead",
    ),
    sql(
        "if v_free or w.lease_until < v_now then",
        "if w.lease_until < v_now then",
        WORKERS + "a_dead_process_is_found_at_the_second_look",
    ),
    sql(
        "           and (seen_at > pg_postmaster_start_time()",
        "           and (true",
        WORKERS + "nobody_is_dead_while_postgres_has_just_started",
    ),
    # neighbours: the kernel's word
    sql(
        "        if v_free then\n            perform pg_advisory_unlock(w.lock_key);\n            update",
        "        if true then\n            perform pg_advisory_unlock(w.lock_key);\n            update",
        WORKERS + "a_held_lock_outweighs_the_kernels_word",
    ),
    sql(
        "           and live.seen_at <= v_now - make_interval(secs => told.told_s)\n",
        "",
        WORKERS + "a_heartbeat_since_outweighs_the_kernels_word",
    ),
    sql(
        "           and (live.seen_at > pg_postmaster_start_time()",
        "           and (true",
        WORKERS + "a_word_does_not_hasten_what_postgres_made_unclear",
    ),
    sql(
        "         where live.state in ('live', 'draining')\n           and live.seen_at",
        "         where true\n           and live.seen_at",
        WORKERS + "a_word_about_who_said_goodbye_changes_nothing",
    ),
    Mutation(
        "agentq/store/sql/workers.sql",
        "where place = %(place)s and state",
        "where %(place)s <> '' and state",
        NEAR + "a_pid_of_another_place_means_somebody_else",
    ),
    Mutation(
        "agentq/store/sql/workers.sql",
        "where place = %(place)s and state in ('live', 'draining')",
        "where place = %(place)s",
        NEAR + "who_is_gone_is_watched_no_more",
    ),
    Mutation(
        "agentq/heart.py",
        "            place=place(),\n",
        "",
        NEAR + "a_process_says_where_it_runs",
    ),
    Mutation(
        "agentq/neighbours.py",
        " if pid != os.getpid()}",
        "}",
        NEAR + "nobody_watches_itself",
    ),
    Mutation(
        "agentq/neighbours.py",
        "            except ProcessLookupError:\n                self._hear(worker)\n",
        "            except ProcessLookupError:\n                pass\n",
        NEAR + "a_pid_that_nobody_has_is_a_word_too",
    ),
    Mutation(
        "agentq/neighbours.py",
        "        self._look_at = now + self._pause_s if asked else math.inf\n",
        "        self._look_at = math.inf\n",
        NEAR + "a_lock_that_falls_late_is_waited_for",
    ),
    Mutation(
        "agentq/neighbours.py",
        "        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)\n",
        "        self._pause_s = 0.0\n",
        NEAR + "a_lock_that_falls_late_is_waited_for",
    ),
    Mutation(
        "agentq/neighbours.py",
        " if now - at <= self._patience_s}",
        "}",
        NEAR + "a_lock_that_does_not_fall_is_left_to_the_slower_way",
    ),
    Mutation(
        "agentq/neighbours.py",
        "os.register_at_fork(after_in_child=_close_in_child)",
        "",
        NEAR + "a_forked_child_keeps_nothing",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "            if self._neighbours.rest(left):\n                self._do(self._ended)\n",
        "            self._neighbours.rest(left)\n",
        NEAR + "the_end_of_a_neighbour_ends_the_relays_rest",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "        if self._neighbours.rest(0.0):\n",
        "        if False:\n",
        NEAR + "the_end_of_a_neighbour_goes_before_the_next_chore",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "            self.find_missing(time.monotonic() - max(dead.values()))\n",
        "",
        NEAR + "the_end_of_a_neighbour_ends_the_relays_rest",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "self.find_missing(time.monotonic() - max(dead.values()))",
        "self.find_missing(0.0)",
        NEAR + "what_was_sent_after_the_end_is_not_missed",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "        self._neighbours.wake()\n",
        "",
        NEAR + "a_relay_stops_at_once_and_watches_nobody",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "        finally:\n            self._neighbours.close()\n",
        "        finally:\n            pass\n",
        NEAR + "a_relay_stops_at_once_and_watches_nobody",
    ),
    sql(
        "when e.crashes >= 1 then 'suspect'",
        "when e.crashes >= 9 then 'suspect'",
        WORKERS + "again_then_suspect_then_buried",
    ),
    sql(
        "when e.crashes >= 1 then 'suspect'",
        "when true then 'suspect'",
        WORKERS + "neighbours_of_a_poisonous_step_are_not_punished",
    ),
    sql(
        "crashes = l.crashes + 1, attempt = l.attempt - 1",
        "crashes = l.crashes + 1",
        WORKERS + "crashes_cost_no_attempts",
    ),
    sql(
        "w.worker_id = l.worker and w.state in ('live', 'draining'))",
        "w.worker_id = l.worker and w.state = 'live')",
        WORKERS + "steps_of_the_living_are_not_taken_back",
    ),
    Mutation(
        "agentq/store/sql/workers.sql",
        "select pg_try_advisory_lock(%(lock_key)s);",
        "select true, pg_advisory_lock(%(lock_key)s);",
        WORKERS + "a_half_open_connection_does_not_keep_its_process_from_beating",
    ),
    Mutation(
        "agentq/store/sql/workers.sql",
        "on conflict (worker_id) do nothing;",
        ";",
        WORKERS + "a_registration_whose_answer_was_lost_is_repeated",
    ),
    Mutation(
        "agentq/heart.py",
        "                if not self._registration.holds_lock():",
        "                if False:",
        WORKERS + "a_lost_connection_is_noticed_before_the_relay_looks_twice",
    ),
    Mutation(
        "agentq/heart.py",
        "            self._in_flight.fence_all()\n",
        "            pass\n",
        CARRY + "a_process_taken_for_dead_fences_its_steps_and_registers_anew",
    ),
    Mutation(
        "agentq/heart.py",
        "if now <= attempt.deadline or attempt.answered:",
        "if now <= attempt.deadline:",
        CARRY + "an_answer_that_waits_for_postgres_is_not_late",
    ),
    Mutation(
        "agentq/heart.py",
        "                attempt.stop(reason)",
        "                pass",
        CARRY + "a_running_step_is_told_that_its_session_was_cancelled",
    ),
    Mutation(
        "agentq/heart.py",
        "                self._engine.abandon(attempt)",
        "                pass",
        CARRY + "a_sync_step_that_ignores_its_deadline_is_abandoned",
    ),
    # I5: effects
    sql(
        HELD_BY_FENCE,
        HELD_BY_FENCE.replace("and l.fence = p_fence and l.fence_token = p_token", ""),
        STORED + "a_zombie_claims_and_stores_nothing",
    ),
    sql("    if f.args_hash <> p_hash then", "    if false then", STORED + "a_key_with_other_arguments_is_a_conflict"),
    sql(
        "    if f.state = 'pending' and (f.session_id, f.step_id) <> (p_session, p_step) and exists (",
        "    if false and exists (",
        STORED + "two_steps_with_one_domain_key_call_once",
    ),
    sql(
        "state = 'pending'\n       and session_id = p_session and step_id = p_step and fence = p_fence;\n    return",
        "state = 'pending';\n    return",
        STORED + "a_zombie_claims_and_stores_nothing",
    ),
    sql("    return found or exists (", "    return found and exists (", STORED + "a_call_stored_once_is_told_so"),
    sql("calls = e.calls + 1", "calls = e.calls", STORED + "a_call_that_failed_may_go_out_again"),
    Mutation(
        "agentq/agents/calls.py",
        'return f"{self._attempt.claim.path}:{self._count}"',
        'return f"{self._attempt.claim.path}:{self._count}:{self._attempt.claim.attempt}"',
        EFFECTS + "a_recorded_result_is_recalled_in_the_next_attempt",
    ),
    Mutation(
        "agentq/agents/calls.py",
        '            case "pending" if call.declared.check is not None:',
        '            case "pending" if False:',
        EFFECTS + "the_check_is_asked_before_a_repeat",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        elif call.declared.check is None:",
        "        elif False:",
        EFFECTS + "an_answer_that_was_lost_is_never_blindly_repeated",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        if call.declared.idempotent or not self._means.ambiguous(error):",
        "        if True:",
        EFFECTS + "an_answer_that_was_lost_is_never_blindly_repeated",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        async with self._turns.setdefault(call.key, asyncio.Lock()):",
        "        if True:",
        EFFECTS + "one_key_twice_at_the_same_time_calls_once",
    ),
    Mutation(
        "agentq/agents/context.py",
        "        with self._attempt.keep_open(self._connection):",
        "        if True:",
        "tests/agents/test_transactions.py::test_a_coroutine_that_outlives_its_attempt_writes_nothing",
    ),
    # dependencies
    sql(
        "if v_ok + v_bad >= (p_rules ->> 'volume_min')::int\n           and",
        "if",
        BREAKERS + "too_few_calls_open_nothing",
    ),
    sql(
        "\n           and v_bad >= (p_rules ->> 'failure_rate')::double precision * (v_ok + v_bad) then",
        " then",
        BREAKERS + "the_rate_decides_not_the_number",
    ),
    sql("        if r.bad = 0 then continue; end if;\n", "", BREAKERS + "successes_alone_open_nothing"),
    sql(" and w.slot <= v_slot - 10;", " and false;", BREAKERS + "old_failures_are_forgotten"),
    sql(
        "if d.state <> 'closed' or r.ok + r.bad = 0 then",
        "if r.ok + r.bad = 0 then",
        BREAKERS + "calls_from_before_the_opening_change_nothing",
    ),
    sql(
        "if v_taken >= (p_rules ->> 'probes')::int then",
        "if false then",
        BREAKERS + "an_open_breaker_lets_nobody_try_before_its_pause_is_over",
    ),
    sql(
        "where u.tenant = p_tenant and u.name = p_name for no key update;\n    if d.state = 'forced_open'",
        "where u.tenant = p_tenant and u.name = p_name;\n    if d.state = 'forced_open'",
        BREAKERS + "probers_never_share_a_place",
    ),
    sql(
        "if d.state = 'open' and d.probe_at > v_now then",
        "if false then",
        BREAKERS + "an_open_breaker_lets_nobody_try_before_its_pause_is_over",
    ),
    sql("and (p.expires_at <= v_now\n", "and (false\n", BREAKERS + "a_prober_that_died_does_not_wedge_it"),
    sql(
        "w.worker_id = p.worker and w.state not in ('live', 'draining')));",
        "false));",
        BREAKERS + "the_places_of_a_dead_worker_are_free_at_once",
    ),
    sql(
        "    delete from agentq.dependency_probe where tenant = p_tenant and name = p_name and probe = p_probe;\n",
        "",
        BREAKERS + "a_probe_that_comes_to_nothing_gives_its_place_back",
    ),
    sql("if d.good >= (p_rules ->> 'good')::int then", "if true then", BREAKERS + "it_closes_after_enough_good_probes"),
    sql(
        "greatest(p_pause_s, coalesce(p_retry_after_s, 0))",
        "p_pause_s",
        BREAKERS + "retry_after_is_the_floor_of_the_pause",
    ),
    sql(
        "* 2, (p_rules ->> 'pause_max_s')::double precision)",
        "* 2, 1e9)",
        BREAKERS + "the_pause_grows_up_to_its_cap",
    ),
    sql(
        "        if v_after <> 'forced_open' then\n",
        "        if false then\n",
        NEEDING + "who_waits_comes_back_when_it_closes",
    ),
    sql("where forced_until <= p_now", "where false", BREAKERS + "an_operators_word_holds_until_its_time_is_over"),
    sql(
        "case when p_refund = l.failure ->> 'dependency' then l.blamed else 0 end",
        "0",
        NEEDING + "an_outage_costs_no_attempt",
    ),
    Mutation(
        "agentq/agents/act.py",
        "return Broke(failure) if delay_s is None else Postponed(",
        "return Broke(failure) if True else Postponed(",
        NEEDING + "one_tenants_bad_key_is_its_own_matter",
    ),
    Mutation(
        "agentq/agents/act.py",
        "        name = self._tell_late(permits, failure)\n        return Broke",
        "        name = None\n        return Broke",
        NEEDING + "a_thread_that_hangs_is_counted_when_it_is_abandoned",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        if call.declared.needs not in (None, self._needs) and",
        "        if call.declared.needs is not None and",
        NEEDING + "a_step_and_its_effect_take_one_place",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "                self._means.effects.give_back(self._attempt.claim, call.key)\n",
        "                pass\n",
        NEEDING + "a_call_held_back_leaves_no_effect",
    ),
    Mutation(
        "agentq/agents/dependencies.py",
        "            if self._told < mine:",
        "            if True:",
        NEEDING + "failures_of_one_moment_are_told_together",
    ),
    Mutation(
        "agentq/agents/dependencies.py",
        "        if self._report_s == 0:\n            self._look()",
        "        if True:\n            self._look()",
        NEEDING + "asking_costs_no_round_trip_while_closed",
    ),
    Mutation(
        "agentq/policies/dependencies.py",
        '    if failure.status in _DENIED_STATUSES or failure.type in _DENIED_TYPES:\n        return "denied"',
        '    if failure.status in _DENIED_STATUSES or failure.type in _DENIED_TYPES:\n        return "down"',
        NEEDING + "one_tenants_bad_key_is_its_own_matter",
    ),
    Mutation(
        "agentq/engine.py",
        "case Postponed(_, extras) if claim.refusals >= self.refusals_max:",
        "case Postponed(_, extras) if False:",
        NEEDING + "what_is_put_off_for_ever_ends",
    ),
    # failure classes
    Mutation(
        "agentq/agents/act.py",
        "        if claim.repairs < step.repairs:",
        "        if True:",
        REPAIRS + "repairs_end",
    ),
    Mutation(
        "agentq/agents/act.py",
        "            return Broke(replace(failure, final=True))",
        "            return Broke(failure)",
        REPAIRS + "repairs_end",
    ),
    sql(
        "repair = case when p_verdict = 'repair' then p_failure else l.repair end",
        "repair = case when p_verdict = 'repair' then p_failure end",
        REPAIRS + "feedback_outlives_an_outage",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        if declared.repairable and self._attempt.claim.repairs:",
        "        if self._attempt.claim.repairs:",
        REPAIRS + "a_question_is_asked_anew_and_a_payment_is_not",
    ),
    Mutation(
        "agentq/policies/failures.py",
        "or status_of(error) in _AMBIGUOUS_STATUSES or _unreadable(error)",
        "or _unreadable(error)",
        KINDS,
    ),
    Mutation("agentq/policies/failures.py", "or _unreadable(error):", "or False:", KINDS),
    # effects, told by people
    sql(
        "    if f.state not in ('pending', 'unknown') then return query select 'settled', f.state; return; end if;\n",
        "",
        TELLING + "of_two_people_one_decides",
    ),
    sql(
        "    if f.state = 'pending' and exists (\n        select from agentq.ledger_entry l\n"
        "         where l.tenant = p_tenant and l.session_id = f.session_id and l.step_id = f.step_id\n"
        "           and l.state = 'running' and l.fence = f.fence) then\n        return query select 'running'",
        "    if false then\n        return query select 'running'",
        TELLING + "a_call_that_is_out_now_is_not_told",
    ),
    sql("    if not p_dry then\n", "    if true then\n", TELLING + "it_happened"),
    # the engine
    Mutation(
        "agentq/engine.py",
        "self.ledger.settle(attempt.claim, settlement, on=attempt.connection)",
        "self.ledger.settle(attempt.claim, settlement)",
        "tests/agents/test_transactions.py::test_a_commit_that_is_refused_fails_the_step",
    ),
    Mutation(
        "agentq/engine.py",
        "            stack.__exit__(_Rollback, _Rollback(), None)",
        "            stack.close()",
        "tests/agents/test_transactions.py::test_an_exception_undoes_the_writes",
    ),
    Mutation(
        "agentq/engine.py",
        "            self.in_flight.doubt(ref, token)\n",
        "            pass\n",
        CARRY + "a_claim_whose_answer_was_lost_is_disowned",
    ),
    Mutation(
        "agentq/agents/act.py",
        '            if attempt.stopped != "cancelled":',
        "            if False:",
        CARRY + "whatever_a_step_raises_its_entry_ends",
    ),
    Mutation(
        "agentq/store/ledger.py",
        "            with driver_errors(), schema_errors():",
        "            with schema_errors():",
        "tests/agents/test_transactions.py::test_a_connection_that_breaks_is_a_failed_attempt",
    ),
    # the relay
    Mutation(
        "agentq/relay/relay.py",
        "missing = min(stale, expected - self._publisher.depth(queue), self._batch)",
        "missing = min(stale, self._batch)",
        RELAY + "only_as_many_as_are_missing_are_sent_again",
    ),
    Mutation(
        "agentq/store/sql/ledger.sql",
        "       or has.room and exists (",
        "       or exists (",
        ADMISSION + "only_where_there_is_something_to_admit_is_it_tried",
    ),
    Mutation(
        "agentq/store/sql/ledger.sql",
        "       and (l.queued_at < agentq.now() - make_interval(secs => %(age_s)s * 2 ^ least(l.dispatches, 6))",
        "       and (true",
        LEDGER + "missing_messages_are_sent_again_less_and_less_often",
    ),
    Mutation(
        "agentq/store/sql/ledger.sql",
        "order by l.queued_at limit %(max)s for update of l skip locked)",
        "order by l.queued_at limit %(max)s)",
        LEDGER + "two_relays_never_send_one_message_twice",
    ),
    # I8: tenants
    Mutation(
        "agentq/store/sql/security.sql",
        "tenant = current_setting('agentq.tenant', true) or current_setting('agentq.tenant', true) = '*')$policy$",
        "true)$policy$",
        SCHEMA + "a_tenant_sees_its_own_rows_only",
    ),
    Mutation(
        "agentq/store/sql/security.sql",
        "        execute format('alter table agentq.%I enable row level security', t);",
        "",
        SCHEMA + "a_tenant_changes_its_own_rows_only",
    ),
    Mutation(
        "agentq/store/pool.py",
        "(\"select set_config('agentq.tenant', %s, true)\"",
        "(\"select set_config('agentq.tenant', %s, false)\"",
        SCHEMA + "the_name_of_a_tenant_ends_with_its_transaction",
    ),
    # payloads
    Mutation(
        "agentq/payload.py",
        "    return to_json(one) == to_json(other)",
        "    return one == other",
        "tests/test_payload.py::test_values_that_python_holds_equal_are_told_apart",
    ),
    Mutation(
        "agentq/payload.py",
        "    if len(before) <= DELTAS_MAX and sum(map(len, before[1:])) + len(change) < len(before[0]):",
        "    if False:",
        "tests/test_payload.py::test_bytes_follow_what_changed_not_how_long_it_went_on",
    ),
    # recovery
    Mutation(
        "agentq/store/sql/functions/recovery.sql",
        "    if s.generation <> p_generation then",
        "    if false then",
        RECOVERY + "of_two_who_reopen_at_once_one_wins",
    ),
    Mutation(
        "agentq/store/sql/functions/recovery.sql",
        "    perform agentq.lock_live_steps(p_tenant, p_session);\n",
        "",
        RECOVERY + "a_settlement_under_way_is_waited_for",
    ),
    Mutation(
        "agentq/store/sql/functions/recovery.sql",
        "       set superseded = p_by, worker = null, fence_token = null, unserved = null,\n"
        "           state = case when l.state in ('done', 'dead') then l.state else 'cancelled' end,",
        "       set superseded = p_by, worker = null, fence_token = null, unserved = null,\n"
        "           state = case when l.state = 'done' then l.state else 'cancelled' end,",
        RECOVERY + "a_dead_session_goes_on_where_it_stopped",
    ),
    sql(
        "    fenced := agentq.fence_off(p_tenant, p_session, null, p_failure, v_now);",
        "    fenced := 0;",
        RECOVERY + "a_killed_session_throws_away_what_still_runs",
    ),
    Mutation(
        "agentq/store/sql/functions/recovery.sql",
        "if c.deadline_at <= v_now and p_deadline_s is null then",
        "if false then",
        RECOVERY + "a_deadline_that_is_over_must_be_set_anew",
    ),
    Mutation(
        "agentq/store/sql/functions/recovery.sql",
        "    perform agentq.ask_again(p_tenant, p_session, v_by, p_now);\n",
        "",
        RECOVERY + "a_question_that_was_void_is_asked_again",
    ),
    Mutation(
        "agentq/store/sql/functions/sessions.sql",
        "    if j.state <> 'waiting' then return null; end if;",
        "",
        RECOVERY + "children_of_a_superseded_join_are_ended_and_do_no_harm",
    ),
    Mutation(
        "agentq/store/sql/functions/ledger.sql",
        "    elsif p_verdict = 'cancelled' then\n        p_verdict := 'release';",
        "    elsif false then\n        p_verdict := 'release';",
        RECOVERY + "a_stopped_attempt_of_a_reopened_session_comes_back",
    ),
    Mutation(
        "agentq/store/sql/functions/ledger.sql",
        "        if v_session <> 'running' or p_version > v_pinned then",
        "        if p_version > v_pinned then",
        RECOVERY + "a_settlement_that_meets_a_resumption_is_not_held_for_ever",
    ),
    Mutation(
        "agentq/store/sql/functions/effects.sql",
        "    if p_dry then",
        "    if false then",
        "tests/client/test_recovery.py::test_a_dry_fork_recalls_and_never_calls",
    ),
    Mutation(
        "agentq/store/pool.py",
        "except (PoolTimeout, PoolClosed, psycopg.errors.ProgramLimitExceeded):",
        "except (PoolTimeout, PoolClosed):",
        RECOVERY + "what_is_too_large_for_postgres_is_not_an_outage",
    ),
    Mutation(
        "agentq/watchdog.py",
        "if self._in_flight.draining or self._consumer.is_full():",
        "if self._in_flight.draining:",
        "tests/broker/test_watchdog.py::test_whatever_else_keeps_it_quiet_is_no_stall",
    ),
    Mutation(
        "agentq/watchdog.py",
        "        if 2 * stranded >= slots and not self._in_flight.draining:",
        "        if False:",
        "tests/broker/test_watchdog.py::test_a_process_whose_slots_are_lost_ends",
    ),
    Mutation(
        "agentq/watchdog.py",
        "if depths[found[key][0]] or found[key][1] > self._seen[key][1]]",
        "]",
        "tests/broker/test_watchdog.py::test_whatever_else_keeps_it_quiet_is_no_stall",
    ),
    # producers
    Mutation(
        "agentq/submissions.py",
        "            except Exception as error:\n                # Nonsense",
        "            except ZeroDivisionError as error:\n                # Nonsense",
        "tests/broker/test_submissions.py",
    ),
    Mutation(
        "agentq/broker/transport.py",
        "TypeError, AttributeError, RecursionError):",
        "TypeError, AttributeError):",
        "tests/broker/test_fleet.py::test_garbage_is_kept_and_the_worker_lives[nested-submit]",
    ),
    # a state is read from few rows
    Mutation(
        "agentq/payload.py",
        "if len(before) <= DELTAS_MAX and sum(",
        "if sum(",
        "tests/test_payload.py::test_a_large_state_that_changes_a_little_is_read_from_few_rows",
    ),
    # I4: a chore that fails
    Mutation(
        "agentq/relay/relay.py",
        '            log.exception("a chore of',
        '            raise\n            log.exception("a chore of',
        RELAY + "a_chore_that_fails_keeps_no_other_from_its_work",
    ),
    # a broker that is away
    Mutation(
        "agentq/broker/transport.py",
        "        if self._delivered:  # or",
        "        if True:  # or",
        "tests/broker/test_transport.py::test_a_lost_connection_is_asked_for_nothing_when_only_wakes_are_open",
    ),
    Mutation(
        "agentq/broker/transport.py",
        "self._pool is not None and self._kept_client",
        "self._kept_client",
        "tests/broker/test_transport.py::test_a_lost_connection_makes_no_new_client",
    ),
    # I8: shares of the slots
    sql(
        "    v_cap := least(v_cap, v_allowance);\n",
        "",
        "tests/store/test_fairness.py::test_weights_divide_what_is_too_little",
    ),
    sql(
        "case when shared_at > v_now - interval '5 s' then allowance end",
        "allowance",
        "tests/store/test_fairness.py::test_an_allowance_that_nobody_renews_binds_nobody",
    ),
    sql(
        "v_room := least(v_room, greatest(agentq.free_slots(p_tenant), (v_admitted = 0)::int));",
        "null;",
        "tests/store/test_fairness.py::test_a_flood_before_the_first_division_takes_what_is_free",
    ),
    sql(
        "        return 8 - (select count(*) from agentq.ledger_entry where tenant = p_tenant",
        "        return 1000 - (select count(*) from agentq.ledger_entry where tenant = p_tenant",
        "tests/store/test_fairness.py::test_what_comes_while_no_worker_is_there_does_not_fill_the_broker",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "for first in range(0, len(due), _ADMIT_AT_ONCE):",
        "for first in range(0, min(len(due), 1), _ADMIT_AT_ONCE):",
        "tests/relay/test_relay.py::test_however_many_tenants_are_due_all_are_admitted",
    ),
    # I8: a slot that falls free between two divisions
    sql(
        "        v_wake := agentq.pass_slot_on(p_tenant, v_of.worker_group, p_now);\n",
        "        null;\n",
        "tests/store/test_fairness.py::test_a_slot_that_its_tenant_has_no_use_for_is_passed_on",
    ),
    sql(
        "    if agentq.free_slots(p_tenant) <= 0 then return null; end if;\n",
        "",
        "tests/store/test_fairness.py::test_no_more_is_passed_on_than_there_are_slots",
    ),
    sql(
        "        continue when not pg_try_advisory_xact_lock(1634166382, hashtext(t.name));\n",
        "",
        "tests/store/test_fairness.py::test_a_slot_waits_for_nobodys_lock",
    ),
    sql(
        "    perform set_config('agentq.tenant', v_tenant, true);\n    return v_wake;",
        "    return v_wake;",
        "tests/store/test_fairness.py::test_a_slot_is_passed_on_within_the_tenants_view",
    ),
    sql(
        "    return query select agentq.admit(p_tenant, 1);\n    if found then return; end if;\n",
        "",
        "tests/store/test_fairness.py::test_a_slot_that_is_given_up_unclaimed_is_filled",
    ),
    Mutation(
        "agentq/engine.py",
        "                self._refill(ref.tenant)\n",
        "                pass\n",
        "tests/agents/test_versions.py::test_what_nobody_serves_leaves_its_slot_at_once",
    ),
    sql(
        "order by o.name = p_tenant, o.time_used",
        "order by o.name = p_tenant, -o.time_used",
        "tests/store/test_fairness.py::test_a_slot_goes_to_who_is_furthest_behind",
    ),
    Mutation(
        "agentq/relay/relay.py",
        "                self._do_all(self._urgent, between=self._hear_of_ends)\n                self.rounds",
        "                self.round()\n                self.rounds",
        "tests/relay/test_relay.py::test_what_takes_long_keeps_no_step_waiting",
    ),
    Mutation(
        "agentq/policies/fairness.py",
        "        used[demand.name] += (owed - behind[demand.name]) / demand.weight\n",
        "",
        "tests/policies/test_fairness.py::test_an_old_debt_is_forgiven",
    ),
    Mutation(
        "agentq/policies/fairness.py",
        "    if running >= slots:\n        more =",
        "    if False:\n        more =",
        "tests/policies/test_fairness.py::test_steps_on_their_way_fill_no_slot",
    ),
    Mutation(
        "agentq/worker.py",
        "            worker.max_concurrency = worker.min_concurrency\n",
        "",
        "tests/broker/test_worker.py::test_who_comes_while_every_slot_is_held_does_not_wait",
    ),
    # retention
    sql(
        "where g.root = f.root and s.state in ('running', 'paused'));",
        "where false);",
        "tests/store/test_retention.py::test_a_family_goes_together",
    ),
    # concurrency keys and restrictions
    sql(
        "if s.concurrency_key is not null then perform",
        "if false then perform",
        TURNS + "a_queued_session_waits_for_its_turn",
    ),
    sql(
        "    perform pg_advisory_xact_lock(1634166384, hashtext(p_tenant || ' ' || p_turn));\n    if p_on",
        "    if p_on",
        TURNS + "a_start_waits_for_another_that_has_not_committed",
    ),
    sql(
        "if not p_agent = any (v_agents) and",
        "if false and",
        PERMISSIONS + "an_agent_that_is_not_allowed_is_not_started",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        self._means.permissions.require_tool(self._tenant, name)\n",
        "",
        PERMISSIONS + "a_tool_that_is_not_allowed_is_not_called",
    ),
    sql(
        "p_dispatches < 2 and p_queued_at",
        "p_queued_at",
        "tests/store/test_fairness.py::test_what_nobody_takes_holds_nobody_back",
    ),
    sql("and due_at <= v_now - interval '30 s' * priority", "and false", ADMISSION + "a_low_priority_does_not_starve"),
    # I8: rates
    Mutation(
        "agentq/broker/rates.lua",
        "if share then cost = cost * parts end",
        "",
        RATES + "a_flood_leaves_the_other_tenants_their_share",
    ),
    Mutation(
        "agentq/broker/rates.lua",
        "elseif young and not share then",
        "elseif false then",
        RATES + "a_wiped_broker_does_not_give_a_second_burst",
    ),
    sql("order by bucket for update;", "order by bucket;", RATES + "a_take_waits_for_another_that_has_not_committed"),
    # I6: budgets
    sql(
        "    if p_by <> 'settlement' then\n",
        "    if false then\n",
        "tests/crash/test_cost_sums.py::test_cost_sums_are_equal_on_every_surface",
    ),
    Mutation(
        f"{FUNCTIONS}/workers.sql",
        "agentq.usage_of_lost(e));",
        "null);",
        "tests/crash/test_cost_sums.py::test_cost_sums_are_equal_on_every_surface",
    ),
    sql(
        "where w.spent_micros + w.reserved_micros > l.cost or",
        "where w.spent_micros > l.cost or",
        BUDGETS + "sixty_four_callers_get_exactly_what_is_affordable",
    ),
    sql(
        "or w.spent_tokens + w.reserved_tokens > l.tokens or l.unpriced",
        "or l.unpriced",
        BUDGETS + "each_scope_refuses_what_would_pass_it",
    ),
    sql(
        "and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token;\n    if not found then status",
        "and l.state = 'running';\n    if not found then status",
        BUDGETS + "only_the_holder_of_the_fence_reserves",
    ),
    sql(
        "        status := case v_state when 'held' then 'ok' else 'closed' end; return next; return;",
        "        null;",
        BUDGETS + "the_same_question_has_the_same_answer",
    ),
    sql(
        "join line on s.session_id = line.parent_session",
        "join line on false",
        BUDGETS + "a_child_draws_on_its_parents_budget",
    ),
    sql(
        "p_micros is null and b.cost_micros is not null and b.tokens is null as unpriced",
        "false as unpriced",
        BUDGETS + "a_call_without_a_price_needs_a_limit_in_tokens",
    ),
    sql(
        "and (e.state = 'held' or e.state = 'uncertain' and e.settled_by = 'relay' and p_by <> 'relay')",
        "",
        BUDGETS + "a_charge_counts_once",
    ),
    sql(
        "(e.state = 'held' or e.state = 'uncertain' and e.settled_by = 'relay' and p_by <> 'relay')",
        "e.state = 'held'",
        BUDGETS + "a_late_attempts_own_word_corrects_the_relays_guess",
    ),
    sql(
        "               and l.state = 'running' and l.fence = r.fence)",
        "               and false)",
        BUDGETS + "a_call_whose_worker_died_is_charged_as_estimated",
    ),
    Mutation(
        "agentq/agents/spending.py",
        'if quote.micros is None and self._with.unpriced == "refuse":',
        "if False:",
        SPENDING + "an_unknown_price_is_refused",
    ),
    Mutation(
        "agentq/agents/spending.py",
        "            self._settle_closed()\n",
        "",
        SPENDING + "a_step_is_not_refused_on_account_of_itself",
    ),
    # the judge of chaos runs: each thing that it must see
    Mutation(
        JUDGE_FILE,
        "            if not found:\n",
        "            if False:\n",
        JUDGE + "an_accepted_session_that_is_not_there_is_lost",
    ),
    Mutation(
        JUDGE_FILE,
        "            if len(known | found) > 1:",
        "            if False:",
        JUDGE + "two_sessions_for_one_key",
    ),
    Mutation(JUDGE_FILE, "            if len(requests) > 1:", "            if False:", JUDGE + "an_effect_done_twice"),
    Mutation(
        JUDGE_FILE,
        "        if end.result != wanted.result:",
        "        if False:",
        JUDGE + "a_result_that_does_not_follow",
    ),
    Mutation(
        JUDGE_FILE,
        "                if before not in applied or applied[before][0].at > request.at:",
        "                if before not in applied:",
        JUDGE + "steps_out_of_order",
    ),
    Mutation(
        JUDGE_FILE,
        "            if operation.place not in made:",
        "            if False:",
        JUDGE + "a_done_session_whose_effect_never_arrived",
    ),
    Mutation(
        JUDGE_FILE,
        "        if not wanted.may_be_unknown:",
        "        if False:",
        JUDGE + "unknown_is_for_effects_that_nobody_can_ask_about",
    ),
    Mutation(
        JUDGE_FILE,
        "        elif not self._was_in_flight(wanted):",
        "        elif False:",
        JUDGE + "parked_without_a_fault",
    ),
    Mutation(
        JUDGE_FILE,
        "            if hit.missed:",
        "            if False:",
        JUDGE + "a_fault_that_hit_nothing_fails_the_run",
    ),
    # tools of MCP servers
    Mutation(
        "agentq/agents/model/mcp.py",
        "                if hash_of(await offered(client)) != self._hash:\n",
        "                if False:\n",
        "tests/agents/test_mcp.py::test_a_list_that_changes_between_two_looks",
    ),
    Mutation(
        "agentq/agents/model/calling.py",
        "        if entry.ready is not None:\n",
        "        if False:\n",
        "tests/agents/test_mcp.py::test_another_description_stops_the_session",
    ),
    Mutation(
        "agentq/agents/model/mcp.py",
        "irreversible=tool.name not in self._trusted",
        "irreversible=False",
        "tests/agents/test_mcp.py::test_over_http_a_person_is_asked_and_the_answer_is_marked",
    ),
    # model agents: of what they are unsure, and of whom they cannot ask
    Mutation(
        "agentq/agents/model/turn.py",
        "if sure is not None and self.agent.confidence_min is not None and sure < self.agent.confidence_min:",
        "if False:",
        "tests/agents/test_confidence.py::test_an_unsure_call_waits_for_a_person",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "        if not said.granted:\n",
        "        if False:\n",
        "tests/agents/test_confidence.py::test_an_unsure_answer_waits_for_a_person",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "if [(part.tool_call_id, part.tool_name) for part in asked] != [(call.id, call.tool) for call in calls]:",
        "if False:",
        "tests/agents/test_confidence.py::test_an_approver_changes_arguments_and_no_tools",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "        except HeldBack as error:\n            return self._instead(error)\n",
        "",
        "tests/agents/test_confidence.py::test_an_outage_goes_over_to_a_model_of_another_provider",
    ),
    # model agents
    Mutation(
        "agentq/agents/model/turn.py",
        "self.state.repairs <= self.agent.repairs or",
        "True or",
        "tests/agents/test_model.py::test_an_unusable_answer_is_fed_back_twice_and_then_dead",
    ),
    Mutation(
        "agentq/policies/failures.py",
        "failure.final or ",
        "",
        "tests/agents/test_model.py::test_an_unusable_answer_is_fed_back_twice_and_then_dead",
    ),
    Mutation(
        "agentq/agents/model/calling.py",
        'if failure.kind == "unknown" or ',
        "if ",
        "tests/agents/test_model.py::test_a_call_whose_outcome_is_unknown_is_not_left_to_the_model",
    ),
    Mutation(
        "agentq/agents/model/calling.py",
        "if isinstance(error, Stopped | FenceLost):",
        "if False:",
        "tests/agents/test_model.py::test_a_tool_that_must_wait_is_no_failure",
    ),
    Mutation(
        "agentq/agents/model/request.py",
        "model_settings=settings, model_request_parameters=parameters)\n    batch",
        "model_settings={}, model_request_parameters=parameters)\n    batch",
        "tests/agents/test_model_http.py::test_what_passes_is_tried_again_once_per_attempt",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "news, self.state.resumed = times > self.state.resumed, times",
        "news = times > self.state.resumed",
        "tests/agents/test_model_limits.py::test_the_breaker_isolates_one_session",
    ),
    Mutation(
        "agentq/policies/limits.py",
        "if spent > limit * times:",
        "if False:",
        "tests/policies/test_limits.py::test_a_call_that_would_go_beyond_is_refused",
    ),
    Mutation(
        "agentq/policies/limits.py",
        "if limit is not None and wanted > limit * times:",
        "if False:",
        "tests/agents/test_model_limits.py::test_a_limit_ends_the_session_before_the_call",
    ),
    Mutation(
        "agentq/policies/session_breaker.py",
        "if breaker.stale and window.stale >= breaker.stale:",
        "if False:",
        "tests/policies/test_session_breaker.py::test_the_same_calls_with_the_same_results_stop_within_ten",
    ),
    # Dead letters: one for each death, each brought back once
    sql(
        "            perform agentq.bury(p_tenant, p_session, p_step, v_now);",
        "            null;",
        BURIED + "a_dead_verdict_leaves_a_letter",
    ),
    sql(
        "            perform agentq.bury(e.tenant, e.session_id, e.step_id, v_now);",
        "",
        BURIED + "a_step_that_kills_its_workers_leaves_a_letter",
    ),
    sql(
        "if d.generation >= (p_job.terms ->> 'max_generation')::int then return 'generation'; end if;",
        "",
        REDRIVEN + "one_that_dies_again_has_a_letter_of_its_own",
    ),
    sql(
        "if p_job.terms ->> 'effects' is null then return 'unknown_effects'; end if;",
        "",
        REDRIVEN + "effects_of_unknown_outcome_are_a_persons_matter",
    ),
    sql(
        "         where d.died_at <= j.until\n",
        "         where true\n",
        REDRIVEN + "a_job_takes_nothing_that_dies_after_it_began",
    ),
    sql(
        "        perform agentq.close_letters(p_tenant, p_session, p_state, p_now);",
        "        null;",
        REDRIVEN + "a_redriven_session_goes_on_where_it_stopped",
    ),
    Mutation(
        "agentq/store/sql/redrives.sql",
        " and (driver = %(driver)s or driver_until is null or driver_until < agentq.now())",
        "",
        REDRIVEN + "whoever_comes_second_follows",
    ),
    Mutation(
        "agentq/store/sql/redrives.sql",
        "      and x.state in ('open', 'half_open', 'forced_open'))",
        "      and false)",
        LETTERBOX + "a_policy_waits_for_the_breaker",
    ),
    Mutation(
        "agentq/relay/redrives.py",
        "if sent - found.bad < needed:",
        "if found.bad == sent:",
        REDRIVEN + "canaries_that_die_keep_the_rest",
    ),
    Mutation(
        "agentq/client/edits.py", "    if lost:", "    if False:", REDRIVEN + "an_edit_that_does_not_fit_is_refused"
    ),
    Mutation(
        "agentq/relay/letterbox.py",
        "if not self._publisher.depth(DEAD_MARK):",
        "if False:",
        LETTERBOX + "a_wiped_broker_is_told_again",
    ),
    Mutation(
        "agentq/relay/letterbox.py",
        "if depth > min(open_letters.get(tenant, 0), self._most):",
        "if False:",
        LETTERBOX + "what_was_dealt_with_is_taken_down",
    ),
    # I10: versions
    sql(
        "        if p_version > v_pinned then\n            -- The state",
        "        if false then\n            -- The state",
        "tests/agents/test_versions.py::test_code_that_cannot_read_a_state_leaves_it_alone",
    ),
    Mutation(
        "agentq/agents/agent.py",
        "        while version in self._migrations:",
        "        while version > 0:",
        "tests/agents/test_versions.py::test_a_version_that_declares_nothing_takes_nothing_over",
    ),
    Mutation(
        "agentq/agents/act.py",
        "agent.read(stored_state(claim), claim.state_version)",
        "agent.read(stored_state(claim))",
        "tests/agents/test_versions.py::test_a_session_in_flight_goes_on_under_the_next_version",
    ),
    Mutation(
        "agentq/engine.py",
        '        return "full", state, None, claim.ref.step_id\n    before',
        "        pass\n    before",
        "tests/agents/test_versions.py::test_bytes_of_another_version_are_stored_anew",
    ),
    # I6, I11: waste, and attempts that are cut off
    sql(
        "case when wasted then cost_micros else repair_micros end as waste_micros,",
        "case when wasted then cost_micros else 0 end as waste_micros,",
        SUMMED + "repairs_are_told_apart_within_the_waste",
    ),
    sql(
        "case when mended then cost_micros else repair_micros end as repair_micros",
        "repair_micros as repair_micros",
        SUMMED + "repairs_are_told_apart_within_the_waste",
    ),
    sql(
        "coalesce(t.detail -> 'repair' = 'true', false) as repair,",
        "coalesce(t.detail ? 'repair', false) as repair,",
        SUMMED + "repairs_are_told_apart_within_the_waste",
    ),
    sql(
        "case when was_mended then micros else 0 end",
        "0",
        SUMMED + "repairs_are_told_apart_within_the_waste",
    ),
    sql(
        "repairs = d.repairs + excluded.repairs, repair_micros = d.repair_micros + excluded.repair_micros\n    )",
        "repairs = d.repairs\n    )",
        SUMMED + "a_repair_that_is_charged_late_is_in_the_sums",
    ),
    sql(
        "repairs = h.repairs + excluded.repairs, repair_micros = h.repair_micros + excluded.repair_micros;",
        "repairs = h.repairs;",
        SUMMED + "a_repair_that_is_charged_late_is_in_the_sums",
    ),
    sql(
        "'repair_micros', least(coalesce(sum((x ->> 'cost_micros')::bigint), 0)::bigint,",
        "'repair_micros', greatest(coalesce(sum((x ->> 'cost_micros')::bigint), 0)::bigint,",
        SUMMED + "an_attempt_cannot_have_cost_less_than_its_repairs",
    ),
    sql(
        "x where x -> 'detail' -> 'repair' = 'true'",
        "x",
        WASTED + "retries_and_repairs_of_both_kinds_are_waste",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "else (t.detail ->> 'repair_micros')::bigint end), 0) as waste_micros,\n               coalesce",
        "else 0 end), 0) as waste_micros,\n               coalesce",
        WASTED + "retries_and_repairs_of_both_kinds_are_waste",
    ),
    Mutation(
        "agentq/store/traces.py",
        "return self.cost_micros if self.wasted else self.repair_micros",
        "return self.cost_micros if self.wasted else 0",
        WASTED + "retries_and_repairs_of_both_kinds_are_waste",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "                    span.note(repair=True)",
        "                    pass",
        WASTED + "what_a_model_is_asked_again_is_waste",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "        self.state.repairing = isinstance(found, Flaw)",
        "        self.state.repairing = flawed",
        WASTED + "what_a_model_is_asked_again_is_waste",
    ),
    Mutation(
        "agentq/store/sql/traces.sql",
        "'repair_micros')::bigint end), 0)::bigint,\n       coalesce(sum(case closing when 'repair'",
        "'nothing')::bigint end), 0)::bigint,\n       coalesce(sum(case closing when 'repair'",
        TRACES + "the_waste_of_what_is_not_shown_is_summed_up",
    ),
    Mutation(
        "agentq/adapters/pydantic_ai.py",
        "if asked and _is_repair(asked[-1]) else {}",
        "if False else {}",
        WASTED + "what_pydantic_ai_asks_again_is_a_repair",
    ),
    sql(
        "perform agentq.trace_attempt(e, s.agent, s.agent_version, e.worker, 'cancelled', p_now, p_failure, null,\n"
        "                                     agentq.usage_of_lost(e));",
        "null;",
        RECOVERY + "a_killed_attempt_leaves_its_row",
    ),
    sql(
        "e.worker, 'cancelled', p_now, p_failure, null,\n"
        "                                     agentq.usage_of_lost(e));",
        "e.worker, 'cancelled', p_now, p_failure, null, null);",
        WASTED + "what_an_attempt_spends_that_was_cut_off_is_in_every_sum",
    ),
    sql(
        "         order by reservation_id for update)",
        "         order by reservation_id)",
        RECOVERY + "a_kill_and_a_charge_at_once_lose_no_money",
    ),
    sql(
        "perform agentq.fence_off(p_tenant, p_session, array(select agentq.from_step_on(p_tenant, p_session, p_step)),",
        "perform agentq.fence_off(p_tenant, p_session, '{}'::uuid[],",
        RECOVERY + "a_replaced_attempt_leaves_its_row",
    ),
    sql(
        "(p_steps is null or step_id = any (p_steps))\n             order by step_id for no key update)",
        "(p_steps is null or step_id = any (p_steps)))",
        RECOVERY + "a_kill_waits_for_a_settlement_that_is_under_way",
    ),
    sql(
        "perform agentq.trace_attempt(e, s.agent, s.agent_version, v_worker, 'release', v_now, null, null,\n"
        "                                     agentq.usage_of_lost(e));",
        "null;",
        RECOVERY + "a_disowned_attempt_leaves_a_row_when_it_called_something",
    ),
    sql(
        "    if exists (select from agentq.reservation\n                where tenant = p_tenant and session_id",
        "    if true or exists (select from agentq.reservation\n                where tenant = p_tenant and session_id",
        RECOVERY + "a_disowned_attempt_leaves_a_row_when_it_called_something",
    ),
    # the decision log
    Mutation(
        "agentq/agents/model/choice.py",
        "    said = arguments.pop(FIELD)",
        "    said = arguments[FIELD]",
        CHOSEN + "what_is_stated_is_no_part_of_the_call",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "            arguments = choices.without(arguments, schema)\n",
        "            pass\n",
        CHOSEN + "the_same_call_for_ever_new_reasons_is_going_in_circles",
    ),
    Mutation(
        "agentq/agents/model/choice.py",
        "map(_alternative, listed[:_ALTERNATIVES_MAX])",
        "map(_alternative, listed)",
        CHOSEN + "a_statement_of_another_form_spoils_no_call",
    ),
    Mutation(
        "agentq/agents/model/choice.py",
        "    if not _is_added(schema):\n        return definition",
        "    if False:\n        return definition",
        CHOSEN + "a_tool_with_such_an_argument_keeps_it",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "choices.split(response, self._schemas()) if self.agent.explain else (response, {})",
        "choices.split(response, self._schemas())",
        CHOSEN + "it_is_off_unless_asked_for",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        '                self._choose(response, (), "none", what, said=said)\n',
        "",
        CHOSEN + "calls_of_which_none_could_be_made_are_told",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "        if said or any(part.tool_name != FINAL for part in response.tool_calls):",
        "        if said:",
        CHOSEN + "calls_that_came_with_the_answer_are_told",
    ),
    Mutation(
        "agentq/agents/tracing.py",
        "        worded = tracing.content and bool(alternatives)",
        "        worded = bool(alternatives)",
        CHOSEN + "without_content_no_step_keeps_them",
    ),
    sql(
        "decode(case when v_content then d.options else coalesce(d.bare, d.options) end, 'base64')",
        "decode(d.options, 'base64')",
        CHOSEN + "a_tenant_that_keeps_no_content_keeps_no_alternatives",
    ),
    # I11: every attempt and choice has its row
    sql(
        "        perform agentq.trace_attempt("
        "e, v_of.agent, v_of.agent_version, e.worker, 'lost', v_now, v_failure, null,\n"
        "                                     agentq.usage_of_lost(e));\n",
        "",
        TRACES + "an_attempt_that_is_lost_with_its_worker_leaves_a_row",
    ),
    sql(
        "    if p_plan ? 'decisions' then",
        "    if false then",
        TRACES + "events_and_decisions_are_written_with_the_attempt",
    ),
    sql(
        "coalesce(s.trace_id, s.session_id),",
        "null::uuid,",
        TRACES + "children_are_in_the_trace_of_their_root",
    ),
    sql(
        "case when v_content then decode(t.input, 'base64') end",
        "decode(t.input, 'base64')",
        TRACES + "a_tenant_may_keep_no_content",
    ),
    sql(
        "case when v_content then d.why end",
        "d.why",
        TRACES + "a_tenant_may_keep_no_content",
    ),
    sql(
        "            perform agentq.guard_partition(v_name);\n",
        "",
        TRACES + "a_partition_named_directly_is_guarded_too",
    ),
    Mutation(
        "agentq/agents/tracing.py",
        "data = encode(self.redact(kind, plain, text_max=self.content_max))",
        "data = encode(plain)",
        "tests/agents/test_tracing.py::test_calls_requests_and_choices_are_traced_and_redacted",
    ),
    Mutation(
        "agentq/policies/redaction.py",
        "            text = text[:-_SLACK]",
        "            pass",
        "tests/policies/test_redaction.py::test_a_secret_on_the_cut_is_not_kept_by_half",
    ),
    Mutation(
        "agentq/policies/redaction.py",
        "found = self._decoded(self._ruled(plain))",
        "found = self._ruled(plain)",
        "tests/policies/test_redaction.py::test_what_must_not_be_kept_is_taken_out",
    ),
    Mutation(
        "agentq/policies/redaction.py",
        "plain = text if text.isascii() else text.translate(_PLAIN_FORMS)",
        "plain = text",
        "tests/policies/test_redaction.py::test_what_must_not_be_kept_is_taken_out",
    ),
    Mutation(
        "agentq/policies/redaction.py",
        "            self._characters -= min(len(value), _TEXT_MAX)\n",
        "            pass\n",
        "tests/policies/test_redaction.py::test_a_value_of_many_large_texts_takes_a_bounded_time",
    ),
    sql(
        "    if p_closing in ('retry', 'repair', 'postpone') and e.due_at > p_now or p_plan ? 'steps' then",
        "    if false then",
        TRACES + "a_wait_is_a_row_that_says_until_when",
    ),
    sql(
        "t.ordinal = 32767 and t.ended_at = a.decided_at)",
        "false)",
        TRACES + "an_approval_is_a_row_of_the_attempt_that_it_let_go_on",
    ),
    Mutation(
        "agentq/store/traces.py",
        "            whole.cost_micros - sum(row.cost_micros for row in acts),",
        "            0,",
        TRACES + "the_end_of_a_session_that_is_too_long_is_shown",
    ),
    Mutation(
        "agentq/agents/calls.py",
        "        self._recording.decide_by_people(permit.state, permit.comment, permit.decided_by)",
        "        pass",
        "tests/people/test_irreversible.py::test_who_let_a_call_go_out_stands_in_the_decision_log",
    ),
    Mutation(
        "agentq/seeing/page.py",
        '    return f"<pre>{escape(text)}</pre>"',
        '    return f"<pre>{text}</pre>"',
        "tests/seeing/test_page.py::test_hostile_content_stays_text_wherever_it_comes_from",
    ),
    Mutation(
        "agentq/seeing/timeline.py",
        'mark if mark.isprintable() else " "',
        "mark",
        "tests/seeing/test_page.py::test_hostile_content_stays_text_wherever_it_comes_from",
    ),
    Mutation(
        "agentq/seeing/sentry.py",
        'f"a fault of agentq itself: {kind} in',
        'f"a fault of agentq itself: {error} in',
        "tests/seeing/test_sentry.py::test_a_fault_of_agentq_itself_is_told_by_its_place",
    ),
    Mutation(
        "agentq/seeing/metrics.py",
        "self.retries.labels(agent, settlement.failure.kind).inc()",
        "pass",
        "tests/seeing/test_metrics.py::test_rules_and_dashboard_ask_for_metrics_that_a_scrape_has",
    ),
    Mutation(
        "config/alerts.yml",
        "agentq_dead_letters - (agentq_dead_letters offset 15m or agentq_dead_letters * 0) > 0",
        "sum by (class) (delta(agentq_dead_letters[15m])) > 0",
        "tests/seeing/test_metrics.py::test_each_rule_fires_when_it_should_and_not_otherwise",
    ),
    # Writes of Flower's: by token, role and name
    Mutation(
        "agentq/flower/pages/tab.py",
        "        RequestHandler.check_xsrf_cookie(self)",
        "        pass",
        ROLES + "an_action_is_refused",
    ),
    Mutation(
        "agentq/flower/guard.py",
        "if self.request.method not in _READS and _may_only_look(self):",
        "if False:",
        ROLES + "flowers_own_buttons_are_an_operators",
    ),
    Mutation(
        "agentq/flower/pages/letter.py",
        'if self.chosen("seen") != self.asked(tenant, letter).seen:',
        "if False:",
        LETTERS + "a_letter_is_redriven_on_terms_that_were_shown",
    ),
    Mutation(
        "agentq/flower/pages/letter.py",
        '"cause_text": redact("failure", letter.cause_text)',
        '"cause_text": letter.cause_text',
        LETTERS + "a_letter_tells_what_the_command_tells",
    ),
    Mutation(
        "agentq/client/dead_letters.py",
        "        if not job.abandoned:\n",
        "        if False:\n",
        LETTERS + "many_are_redriven_with_a_canary_and_stopped",
    ),
    Mutation(
        "agentq/flower/tabs.css",
        ".aq .aq-scroll{position:relative;overflow-x:auto}",
        ".aq .aq-scroll{position:relative}",
        "tests/flower/test_browser.py::test_a_page_fits_a_phone",
    ),
    Mutation(
        "agentq/flower/tabs.css",
        ".aq :focus-visible{outline:2px solid",
        ".aq :focus-visible{outline:0 solid",
        "tests/flower/test_browser.py::test_the_keyboard_reaches_everything_in_the_order_that_one_sees",
    ),
    Mutation(
        "agentq/flower/pages/tab.py",
        "if user is None or not self.may_operate:",
        "if user is None:",
        TABS + "who_may_only_look_sees_no_buttons_and_has_none",
    ),
    Mutation(
        "agentq/flower/pages/tab.py",
        "            with acting_as(user):\n                return self.act",
        "            if True:\n                return self.act",
        TABS + "a_button_does_what_the_command_does_under_the_users_name",
    ),
    Mutation(
        "agentq/seeing/otel.py",
        'content=(one.content or self._settings.trace_content) == "exported"',
        "content=True",
        "tests/seeing/test_otel.py::test_a_session_arrives_as_one_tree_of_genai_spans",
    ),
    # people
    sql(
        "when v_now > x.deadline_at then 'expired' else p_verdict end",
        "else p_verdict end",
        APPROVALS + "a_grant_at_the_deadline_counts_and_a_microsecond_later_does_not",
    ),
    sql(
        "    v_now := agentq.now();  -- not before the lock is held",
        "    v_now := now();  --",
        APPROVALS + "a_grant_that_waits_for_a_lock_beyond_the_deadline_is_late",
    ),
    sql("and (p_groups is null or x.groups && p_groups)", "", APPROVALS + "only_the_groups_that_are_asked_may_decide"),
    sql(
        "x.approval_id = p_approval and x.state = 'open'\n       and (p_groups",
        "x.approval_id = p_approval\n       and (p_groups",
        APPROVALS + "of_two_at_once_one_decides",
    ),
    sql(
        "case when not v_live then 'void' when v_now",
        "case when v_now",
        APPROVALS + "a_decision_finds_out_by_itself_that_nothing_waits",
    ),
    sql(
        "        elsif not exists (select from agentq.approval a",
        "        elsif false and not exists (select from agentq.approval a",
        APPROVALS + "a_decision_between_look_and_park_is_not_lost",
    ),
    sql(
        " and x.args_hash = p_hash and x.state <> 'void'",
        " and x.state <> 'void'",
        PEOPLE + "irreversible.py::test_leave_holds_for_these_arguments_alone",
    ),
    Mutation(
        "agentq/agents/act.py",
        "if attempt.awaits is not None and not isinstance(outcome, Interrupted):",
        "if False:",
        PEOPLE + "irreversible.py::test_a_step_that_catches_everything_waits_all_the_same",
    ),
    Mutation(
        "agentq/agents/context.py",
        "        self.heed_answer()\n        return cast(R, self._calls.perform(",
        "        return cast(R, self._calls.perform(",
        PEOPLE + "ask.py::test_a_step_that_does_not_look_never_gets_past_a_no",
    ),
    Mutation(
        "agentq/agents/asking.py",
        "if hash_of(self.name, edited) != permit.edited_hash:",
        "if False:",
        PEOPLE + "irreversible.py::test_a_tampered_grant_is_not_obeyed",
    ),
    Mutation(
        "agentq/client/approvals.py",
        "if not hmac.compare_digest(",
        "if False and not hmac.compare_digest(",
        "tests/cli/test_approval.py::test_only_an_approver_decides",
    ),
    Mutation(
        "agentq/relay/notices.py",
        "return fresh and hmac.compare_digest(",
        "return hmac.compare_digest(",
        "tests/relay/test_notices.py::test_a_question_is_told_signed_and_without_its_arguments",
    ),
    # the doctor
    Mutation(
        "agentq/store/sql/workers.sql",
        " where restarted_at > agentq.now() - interval '1 day'",
        " where restarted_at is not null",
        "tests/cli/test_looking.py::test_the_doctor_remembers_the_watchdog_for_a_day",
    ),
    Mutation(
        "agentq/store/sql/workers.sql",
        "where e.due_at <= agentq.now() and (e.state in ('ready', 'queued') or e.unserved is not null)",
        "where e.state in ('ready', 'queued') or e.unserved is not null",
        "tests/cli/test_looking.py::test_the_doctor_finds_steps_that_nobody_serves",
    ),
    # memories
    Mutation(
        f"{FUNCTIONS}/ledger.sql",
        "if p_plan ? 'memories' and p_verdict in ('next', 'end', 'fail') then",
        "if p_plan ? 'memories' then",
        f"{MEMORY}what_a_step_wrote_is_committed_with_its_settlement",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token for share;",
        "for share;",
        f"{MEMORY}a_superseded_attempt_writes_nothing",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "if w.if_version <> coalesce(v_live, 0) then",
        "if false then",
        f"{MEMORY}of_many_who_saw_one_version_one_writes",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "perform pg_advisory_xact_lock(v_lock);",
        "null;",
        f"{MEMORY}writers_of_a_new_key_take_turns",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "if found then return next; continue; end if;",
        "",
        f"{MEMORY}a_write_from_the_same_place_is_made_once",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "m.key = p_key and m.gone_at is null\n       and (m.expires_at is null or m.expires_at > agentq.now());",
        "m.key = p_key and m.gone_at is null;",
        f"{MEMORY}a_memory_past_its_time_is_not_read_and_then_gone",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "if w.kind = 'delete' then\n            delete from agentq.memory m",
        "if w.kind = 'delete' and false then\n            delete from agentq.memory m",
        f"{MEMORY}a_deletion_takes_the_content_of_every_version",
    ),
    Mutation(
        f"{FUNCTIONS}/memory.sql",
        "if not p_sealed and exists (",
        "if false and exists (",
        f"{MEMORY}encrypted_memories_are_found_by_whole_words",
    ),
    Mutation(
        "agentq/store/sealing.py",
        "value=vault.seal(tenant, place, write.value)",
        "value=write.value",
        f"{MEMORY}encrypted_memories_are_found_by_whole_words",
    ),
    Mutation(
        "agentq/store/migrate.py",
        'f"revoke all on {SCHEMA}.memory_words from {quoted}",',
        "",
        f"{MEMORY}the_fleet_cannot_read_the_index_of_words",
    ),
    Mutation(
        "agentq/engine.py",
        'failure = Failure("transient", "MemoryConflict", str(error))',
        'failure = Failure("permanent", "MemoryConflict", str(error))',
        f"{REMEMBERING}who_acted_on_an_old_memory_runs_again",
    ),
    Mutation(
        "agentq/agents/memory.py",
        "        if self._attempt.claim.dry_effects:\n            return ()\n",
        "",
        f"{REMEMBERING}a_dry_run_writes_nothing",
    ),
    Mutation(
        "agentq/agents/memory.py",
        'return f"{base}:m{number}", effect is not None',
        'return f"{base}:m{number}", False',
        f"{REMEMBERING}an_effects_memory_is_written_with_the_effect",
    ),
    Mutation(
        "agentq/agents/model/compaction.py",
        "if wrong := parted(made):",
        "if wrong := None:",
        "tests/agents/test_compaction.py::test_a_hook_that_parts_a_call_from_its_return_is_refused",
    ),
    Mutation(
        "agentq/agents/model/turn.py",
        "return due and self._guess > self.state.compacted * 1.25",
        "return due",
        "tests/agents/test_compaction.py::test_what_cannot_be_made_short_is_not_tried_for_ever",
    ),
    # anomalies: each rule at its bound, none where too little is known, and nobody waits for them
    Mutation(
        "agentq/policies/anomalies.py",
        "if baseline.runs >= limits.runs_min:\n        times",
        "if True:\n        times",
        ODD + "percentiles_and_deviations_need_two_hundred_runs",
    ),
    Mutation("agentq/policies/anomalies.py", "value < FLOORS[name] or", "", ODD + "what_is_little_is_no_runaway"),
    Mutation(
        "agentq/policies/anomalies.py", "or baseline.runs < limits.runs_few", "", ODD + "the_multiple_needs_twenty_runs"
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if times and value > times * max(high, 1.0):",
        "if times and value >= 1.1 * times * max(high, 1.0):",
        ODD + "a_multiple_of_the_99th_percentile",
    ),
    Mutation("agentq/policies/anomalies.py", "times and value >", "value >", ODD + "each_rule_can_be_switched_off"),
    Mutation(
        "agentq/policies/anomalies.py",
        "z > limits.mad_z and",
        "z > 1.2 * limits.mad_z and",
        ODD + "deviations_of_the_logarithm",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        " and value > max(high, 1.5 * middle)",
        "",
        ODD + "a_regular_agent_may_vary_by_half",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "middle > 0 and z",
        "z",
        ODD + "deviations_say_nothing_where_most_runs_have_none",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        ", 1.5 * sketch.top)",
        ", 0)",
        ODD + "ten_times_the_median_and_beyond_all_others",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "baseline.runs >= limits.runs_min and baseline.tools:",
        "baseline.tools:",
        ODD + "a_tool_that_was_never_called",
    ),
    Mutation("agentq/policies/anomalies.py", "[:5]:", "[:50]:", ODD + "of_many_new_tools_five_are_named"),
    Mutation(
        "agentq/policies/anomalies.py",
        "if not odd and run.done:",
        "if run.done:",
        ODD + "what_stands_out_is_not_learned_from",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if not odd and run.done:",
        "if not odd:",
        ODD + "a_run_that_failed_or_was_repeated_is_not_learned_from",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if odd and baseline.odd > 0.5:",
        "if False:",
        ODD + "when_most_runs_stand_out_the_baseline_begins_anew",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "max(limits.tool_mix, 1.7 / n)",
        "limits.tool_mix",
        ODD + "the_bound_of_the_mix_grows_where_windows_are_small",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "limits.tool_mix and known and distance",
        "limits.tool_mix and distance",
        ODD + "the_mix_needs_two_hundred_runs_and_can_be_switched_off",
    ),
    Mutation(
        "agentq/policies/anomalies.py", "(1 if odd else n)", "n", ODD + "a_run_that_stood_out_weighs_little_in_the_mix"
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if baseline.strange >= _WINDOWS_STRANGE:",
        "if False:",
        ODD + "a_change_that_stays_becomes_normal",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "baseline.strange + 1 if strange else 0",
        "baseline.strange + strange",
        ODD + "two_odd_windows_are_no_change",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if baseline.seen >= 2 * _MEMORY:",
        "if False:",
        ODD + "old_tools_and_failures_fade",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if known and k > most_normal:",
        "if k > most_normal:",
        ODD + "a_class_of_failure_in_more_runs_than_chance",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if self.n >= 2 * _MEMORY:",
        "if False:",
        ODD + "old_runs_fade_and_the_sketch_stays_small",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "if smooth - middle > bound:",
        "if smooth - middle > 1.05 * bound:",
        ODD + "the_mean_cost_of_an_hour_drifts_past_its_bound",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "0.2 * mean + 0.8 * hours.get",
        "mean + 0.0 * hours.get",
        ODD + "the_mean_cost_of_an_hour_drifts_past_its_bound",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        'if hours["runs"] >= _RUNS_PER_HOUR:',
        "if True:",
        ODD + "cost_by_hour_needs_a_day_of_hours_with_ten_runs_each",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        "len(past) >= max(limits.ewma_hours, 2):",
        "len(past) >= 2:",
        ODD + "cost_by_hour_needs_a_day_of_hours_with_ten_runs_each",
    ),
    Mutation("agentq/policies/anomalies.py", "del past[:-_HOURS]", "pass", ODD + "a_week_of_hours_is_kept"),
    Mutation(
        "agentq/policies/anomalies.py",
        "in sorted(tallies, key=lambda one: (one.ended_at is None, one.ended_at)):",
        "in tallies:",
        ODD + "a_batch_is_learned_in_the_order_in_which_it_ended",
    ),
    Mutation(
        "agentq/policies/anomalies.py",
        'tally.state == "done" and tally.first_run',
        'tally.state == "done"',
        ODD + "only_a_first_run_that_went_well_teaches",
    ),
    Mutation(
        "agentq/store/anomalies.py",
        "return self.tenant, self.agent, self.agent_version",
        "return self.tenant, self.agent, 1",
        ODD + "a_baseline_is_of_one_tenant_agent_and_version",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "(t.steps + 1) % 8 = 0",
        "false",
        TALLIES + "a_session_is_looked_at_every_eighth_attempt",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "p_closing in ('retry', 'repair', 'dead', 'fail', 'lost')",
        "false",
        TALLIES + "each_attempt_is_counted_with_what_it_used",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "        exit when found;  -- or another branch was first\n",
        "        exit;\n",
        TALLIES + "branches_of_one_session_are_all_counted",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "s.state in ('done', 'failed', 'cancelled') limit p_max for update of d skip locked",
        "s.state in ('done', 'failed', 'cancelled') limit p_max",
        TALLIES + "an_ended_session_is_handed_to_one_relay",
    ),
    Mutation(
        "agentq/store/sql/functions/traces.sql",
        "    if p_closing not in ('release', 'postpone', 'park', 'await', 'cancelled') then",
        "    if true then",
        TALLIES + "each_attempt_is_counted_with_what_it_used",
    ),
    Mutation(
        "agentq/store/sql/functions/recovery.sql",
        "    perform agentq.look_at(p_tenant, p_session);\n    return true;",
        "    return true;",
        WATCH + "who_stops_for_long_is_looked_at_where_it_stops",
    ),
    Mutation(
        "agentq/store/sql/functions/approvals.sql",
        "    perform agentq.look_at(p_tenant, p_session);\nend $$;",
        "end $$;",
        WATCH + "who_stops_for_long_is_looked_at_where_it_stops",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "set due = false",
        "set due = due",
        WATCH + "who_stops_for_long_is_looked_at_where_it_stops",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "on conflict on constraint anomaly_once do update\n       set value = greatest(a.value, excluded.value)",
        "on conflict on constraint anomaly_once do update\n       set value = a.value",
        WATCH + "a_session_at_ten_times_its_steps_is_found_while_it_runs",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "if p_plan ? 'steps' then",
        "if false then",
        WATCH + "who_stops_for_long_is_looked_at_where_it_stops",
    ),
    Mutation(
        "agentq/relay/anomalies.py",
        'if not raised.fresh or raised.state != "open":',
        'if raised.state != "open":',
        WATCH + "a_session_at_ten_times_its_steps_is_found_while_it_runs",
    ),
    Mutation(
        "agentq/relay/anomalies.py",
        'if not raised.fresh or raised.state != "open":',
        "if not raised.fresh:",
        WATCH + "an_operators_order_parks_and_mutes",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "    if fresh then\n",
        "    if true then\n",
        WATCH + "an_operators_order_parks_and_mutes",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "order by o.tenant <> '*' desc, o.agent <> '' desc, o.measure <> '' desc limit 1",
        "limit 1",
        WATCH + "an_operators_order_parks_and_mutes",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "s.generation = 0 and s.forked_from is null as first_run",
        "true as first_run",
        WATCH + "a_replayed_session_is_judged_and_teaches_nothing",
    ),
    Mutation(
        "agentq/store/sql/functions/anomalies.sql",
        "        if state = 'open' then\n            insert into agentq.notice",
        "        if true then\n            insert into agentq.notice",
        WATCH + "people_are_told_once_with_numbers_alone",
    ),
    # the sandbox
    Mutation(
        "agentq/sandbox/backends.py",
        'if name.startswith("/") or ".." in Path(name).parts or not name:',
        "if False:",
        "tests/sandbox/test_sandbox.py::test_names_that_leave_the_work_folder_are_refused",
    ),
    Mutation(
        "agentq/sandbox/__init__.py",
        "        if why is None:\n            return candidate",
        "        return candidate",
        "tests/sandbox/test_sandbox.py::test_where_nothing_works_nothing_runs",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "when p_seconds > 3600 then date_trunc('hour', w.since, 'UTC')",
        "when p_seconds > 3600 then w.since",
        PLANS + "a_report_reads_some_minutes_of_traces",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "date_bin('5 minutes'",
        "date_bin('1 hour'",
        SPENT + "the_hour_that_runs_is_added_up_too",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "    perform agentq.add_session_spend('-infinity', m.sessions_until, p_tenant, array[p_session], 1);\n",
        "",
        SPENT + "a_call_that_is_charged_late_is_in_the_sums",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "    perform agentq.add_session_spend('-infinity', m.sessions_until, p_tenant, array[p_session], -1);\n",
        "",
        SPENT + "a_call_that_is_charged_late_is_in_the_sums",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "where x.day = of.day and x.first_at >= p_since",
        "where x.day = of.day and x.last_at >= p_since",
        SPENT + "a_session_that_began_before_the_window_is_told_with_its_part_of_it",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "coalesce(x.first_at < p_since, false) or v_summed < p_since and exists (",
        "coalesce(x.first_at < p_since, false) or false and exists (",
        SPENT + "a_session_that_began_before_the_window_is_told_with_its_part_of_it",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "and not exists (select from recent r where r.tenant = x.tenant",
        "and not exists (select from recent r where false and r.tenant = x.tenant",
        SPENT + "a_session_that_began_before_the_window_is_told_with_its_part_of_it",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "p_sign * coalesce(sum(case t.closing when 'repair' then 1 else",
        "p_sign * coalesce(sum(case t.closing when 'repair' then 0 else",
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "repairs = x.repairs + excluded.repairs, repair_micros = x.repair_micros + excluded.repair_micros;",
        "repairs = x.repairs;",
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "g.repairs + coalesce(g.more_repairs, 0)",
        "g.repairs",
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "g.repair_micros + coalesce(g.more_repair_micros, 0)",
        "g.repair_micros",
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "w.cost_micros, w.waste_micros, w.repairs,",
        "w.cost_micros, w.waste_micros, 0,",
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        f"{FUNCTIONS}/spend.sql",
        "d.waste_micros, d.repairs,\n",
        "d.waste_micros, 0,\n",
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        "agentq/store/traces.py",
        '"waste_micros", "repairs", "repair_micros",',
        '"waste_micros",',
        SPENT + "repairs_are_told_apart_in_each_part_of_a_session",
    ),
    Mutation(
        "agentq/store/traces.py",
        "return rows if rest is None else [*rows, rest]",
        "return rows",
        SPENT + "the_dearest_sessions_and_one_line_for_the_others",
    ),
    Mutation(
        f"{FUNCTIONS}/traces.sql",
        "coalesce(sessions_until, '-infinity') end",
        "rolled_until end",
        SPENT + "figures_outlive_their_traces",
    ),
    Mutation(
        f"{FUNCTIONS}/retention.sql",
        "'session_tally', 'spend_session',",
        "'session_tally',",
        RETENTION + "an_erased_tenant_leaves_its_charges_alone",
    ),
    Mutation(
        "agentq/store/migrations/versions/0019_spend_session.py",
        '    op.create_index("spend_session_all", "spend_session", [*dearest], schema="agentq")\n',
        "",
        PLANS + "the_dearest_sessions_are_read_from_their_days_alone",
    ),
    Mutation(
        "agentq/store/migrations/versions/0019_spend_session.py",
        '["tenant", *dearest]',
        '["tenant", "day"]',
        PLANS + "the_dearest_sessions_are_read_from_their_days_alone",
    ),
    Mutation(
        "agentq/store/sql/anomalies.sql",
        "order by a.found_at desc, a.anomaly_id desc limit",
        "order by a.found_at desc, a.anomaly_id limit",
        PLANS + "a_page_of_anomalies_goes_by_its_index",
    ),
    Mutation(
        "agentq/store/sessions.py",
        "if time.monotonic() - began > _LOOK_S:",
        "if False:",
        SESSIONS + "what_no_index_serves_is_looked_for_bit_by_bit",
    ),
    Mutation(
        "agentq/store/sql/sessions.sql",
        "where matches or nth = %(look)s",
        "where matches",
        PLANS + "a_look_for_what_no_index_serves_ends_soon",
    ),
    Mutation(
        "agentq/client/anomalies.py",
        "if before is None and until is not None:",
        "if False:",
        "tests/cli/test_anomaly.py::test_what_stands_out_is_listed_and_shown",
    ),
]


def main(words: list[str]) -> int:
    """Run every mutation whose file or test contains one of the words; all without words."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.test or word in m.file for word in words)]
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(".git", ".venv", ".agentq", "*_cache", "__pycache__", "benchmarks")
        shutil.copytree(ROOT, copy, ignore=skipped)
        # Compiled once instead of by each run; told by hash, a changed file is seen in any case.
        compileall.compile_dir(copy, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        for number, mutation in enumerate(chosen, 1):
            fate = survives(copy, mutation)
            print(f"{number:3}/{len(chosen)} {fate:8} {mutation.test}", flush=True)
            if fate != "noticed":
                bad.append(f"{fate}: {mutation.file}: {mutation.old.strip().splitlines()[0][:90]} ({mutation.test})")
    print("\n".join(["", f"{len(chosen) - len(bad)} noticed, {len(bad)} not", *bad]))
    return min(len(bad), 100)


def survives(copy: Path, mutation: Mutation) -> str:
    """`noticed`, `survived`, `broken` when the test was not reached, or `stale` when there is nothing to take away."""
    path = copy / mutation.file
    original = path.read_text("utf-8")
    if mutation.old not in original:
        return "stale"
    path.write_text(original.replace(mutation.old, mutation.new, 1), "utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=60", mutation.test]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=180
        )
    except subprocess.TimeoutExpired:
        return "noticed"  # it hangs without its guard
    finally:
        path.write_text(original, "utf-8")
    if ran.returncode == 0:
        return "survived"
    # 1: tests failed. Anything else says that the test was not found or could not run.
    if ran.returncode != 1:
        return f"error {ran.returncode}"
    # Where only what comes before the test failed, it was the mutation that broke, and the test has shown nothing.
    return "noticed" if re.search(r"\d+ failed|\+ Timeout \+", ran.stdout + ran.stderr) else "broken"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
