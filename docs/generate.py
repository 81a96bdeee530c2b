"""Write what documentation can be made from the code: docs/techniques.md, docs/metrics.md, the README's pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import cnnviz.metrics
import cnnviz.synthesis
from cnnviz import render
from cnnviz.data import demo_picture
from cnnviz.options import expectation
from cnnviz.technique import description

HERE = Path(__file__).parent


def techniques_page() -> str:
    """Return the reference of every technique that comes with cnnviz, as Markdown."""
    lines = [
        "# Techniques",
        "",
        "Written by `make docs` from the code. Every option is a keyword argument of `cnnviz.explain`, a flag of",
        "`cnnviz explain TECHNIQUE` and a property of the technique's JSON schema.",
    ]
    known = cnnviz.techniques()
    for offer in known.offers:
        if offer.distribution != "cnnviz":
            continue
        technique = known[offer.name]
        lines += ["", f"## {technique.name}", "", *_paragraphs(f"*{technique.family}.* ", technique.description)]
        takes = {
            "one": "one layer",
            "many": "one layer or several: heatmaps are fused by their mean, pictures stand side by side",
        }
        default = {
            "last-spatial": "the last spatial output before the head",
            "first-convolution": "the first convolution",
        }
        if technique.layers == "all":
            lines += ["", "Takes layers, all at once."]
        elif technique.layers != "none":
            named = technique.default_layer
            told = f"{default['last-spatial']}, or what its options name" if callable(named) else default[named]
            lines += ["", f"Takes {takes[technique.layers]}. Default: {told}."]
        lines += _options(technique.options)
    training = _paragraphs("For `fast-style`. ", description(cnnviz.synthesis.train_style))
    lines += ["", "## Training: cnnviz train-style", "", *training, *_options(cnnviz.synthesis.StyleTraining)]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Return the reference of every metric that comes with cnnviz, as Markdown."""
    lines = [
        "# Metrics",
        "",
        "Written by `make docs` from the code. A metric is applied by `cnnviz.metrics.measure`, compares techniques in",
        "`cnnviz.metrics.evaluate` and `cnnviz evaluate`, and comes from a plugin as techniques do. Each sees one",
        "property alone: none of them says whether a person understands a map, and they disagree with each other.",
    ]
    known = cnnviz.metrics.available()
    for offer in known.offers:
        if offer.distribution != "cnnviz":
            continue
        metric = known[offer.name]
        lines += [
            "",
            f"## {metric.name}",
            "",
            *_paragraphs(f"*{metric.better.capitalize()} is better.* ", metric.description),
        ]
        if metric.boxes:
            lines += ["", "Needs boxes around what is explained."]
        if metric.explains:
            lines += [
                "",
                "Explains again many times, and so needs a technique; `evaluate` runs it only where it is named.",
            ]
        lines += _options(metric.options)
    return "\n".join(lines) + "\n"


def _paragraphs(lead: str, text: str) -> list[str]:
    """Return the paragraphs of a text, the first after `lead`, with a blank line between them."""
    shown = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph)
    return f"{lead}{shown}".splitlines()


def _options(options: type[cnnviz.Options]) -> list[str]:
    """Return a table of options."""
    if not options.model_fields:
        return []
    lines = ["", "| option | accepts | default | what it does |", "|---|---|---|---|"]
    for name, info in options.model_fields.items():
        accepts = expectation(options, name).replace("|", "\\|")
        default = "required" if info.is_required() else f"`{info.get_default()}`"
        lines.append(f"| `{name}` | {accepts} | {default} | {info.description} |")
    return lines


def overview() -> Image.Image:
    """Return the README's picture: what the embedded network sees in a photograph, by four techniques."""
    model = cnnviz.load_model()
    cat = demo_picture()
    results = [
        cnnviz.explain(model, cat, "grad-cam"),
        cnnviz.explain(model, cat, "occlusion"),
        cnnviz.explain(model, cat, "saliency", samples=25, noise=0.15),
        cnnviz.explain(model, cat, "guided-backprop"),
    ]
    shown = [
        render.compose([row[-1][0]], caption=name)
        for r in results
        for row in r.panels(1)
        for name in [r.provenance.technique]
    ]
    photo = render.compose([render.to_pil(results[0].pictures[0])], caption=results[0].captions[0].partition(": ")[2])
    return render.grid([photo, *shown], columns=5, gap=0)


if __name__ == "__main__":
    (HERE / "techniques.md").write_text(techniques_page(), encoding="utf-8")
    (HERE / "metrics.md").write_text(metrics_page(), encoding="utf-8")
    if "--text" not in sys.argv:
        (HERE / "pictures").mkdir(exist_ok=True)
        overview().save(HERE / "pictures" / "overview.jpg", quality=88)
