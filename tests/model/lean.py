"""States that differ only in what can matter no more count as one: many fewer to search.

Only where the rules do not look at it: where a mutation does, states are left as they are.
`test_what_is_left_out_leads_nowhere_else` checks it.
"""

from __future__ import annotations

from .ownership import Job, Node, Row, Rules, State


def lean(state: State, rules: Rules) -> State:
    if not (rules.news_by_version and rules.ok_by_version and rules.whole_row):
        return state
    nodes = tuple(_node(node, state.row) for node in state.nodes)
    client = state.client
    told = {state.row.attempt, client.epoch, client.made if client.asks else 0}
    jobs = [node.job for node in nodes if node and node.job]
    told.update(job.attempt for job in jobs if job.write == "applied")
    return state._replace(
        nodes=nodes,
        wrote=tuple(by if n in told else () for n, by in enumerate(state.wrote)),
        bound=tuple(by if n in told else () for n, by in enumerate(state.bound)),
    )


def _node(node: Node | None, row: Row) -> Node | None:
    """News is compared with what the node holds, or has won and not heard of yet."""
    if node is None or node == Node():
        return node
    held, job = node.held, _job(node.job, row)
    least = [held.version] if held else []
    if job and job.write == "applied":
        least.append(job.expected + 1)
    if not least:
        return Node(None, 0, (), job, node.gone)
    heard = node.heard if node.heard >= min(least) else 0
    news = tuple(version for version in node.news if version > min(least))
    return Node(held, heard, news, job, node.gone)


def _job(job: Job | None, row: Row) -> Job | None:
    """A write that the store will not take, and whose answer is not waited for, is as none."""
    if job is None or job.stage == "swap" or job.write in ("", "applied"):
        return job
    if job.write == "sent" and job.expected == row.version:
        return job
    return job._replace(expected=0, write="")
