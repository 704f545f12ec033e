"""Templates so plain that no conversation makes them slow or large.

Jinja's sandbox keeps a template from the machine, not from time and memory: ``range``, ``*``, macros that call
themselves and texts that double in a loop need no forbidden name. A template that only walks the messages once
and writes pieces of them side by side can do none of that; its text is at most as long as the template times
the conversation. Upstream's templates are such. All others are rendered in a process that can be ended.
"""

from jinja2 import nodes

_PLAIN = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.If, nodes.CondExpr,
    nodes.Compare, nodes.Operand, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.Add, nodes.Concat, nodes.And,
    nodes.Or, nodes.Not, nodes.Neg, nodes.Filter, nodes.For, nodes.Call,
)  # fmt: skip
_FILTERS = {"trim", "tojson", "upper", "lower", "string", "length", "first", "last"}
_CALLS = {"raise_exception"}


def is_plain(template: nodes.Template) -> bool:
    """Whether a parsed template is bounded by its own length and the conversation's."""
    return all(_is_plain(node) for node in _all(template)) and all(
        not list(loop.find_all(nodes.For)) for loop in template.find_all(nodes.For)
    )


def _all(template: nodes.Template) -> list[nodes.Node]:
    return [template, *template.find_all(nodes.Node)]


def _is_plain(node: nodes.Node) -> bool:
    match node:
        case nodes.Filter():
            return node.name in _FILTERS and not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
        case nodes.For():
            return isinstance(node.iter, nodes.Name) and node.iter.name == "messages" and not node.recursive
        case nodes.Call():
            return isinstance(node.node, nodes.Name) and node.node.name in _CALLS and not node.dyn_args
        case _:
            return isinstance(node, _PLAIN)
