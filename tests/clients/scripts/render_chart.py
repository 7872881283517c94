"""Renders a chart with Helm and holds what comes out against Kubernetes' schemas.

`python render_chart.py CHART VALUES_AS_JSON` prints the objects as JSON; what is wrong ends it.
"""

import json
import sys

import helm_python
import kubernetes_validate
import yaml

KUBERNETES = "1.33"
FOREIGN = "keda.sh/"  # whose schemas are not Kubernetes' own


def main(folder: str, values: dict) -> None:
    problems = helm_python.lint(folder)
    serious = [each for each in problems["messages"] if each["severity"] > 1]
    if serious or problems["errors"]:
        sys.exit(f"lint: {serious} {problems['errors']}")
    objects = []
    with helm_python.Chart.load(folder) as chart:
        chart.validate_schema(values)
        for name, text in chart.render(values, name="chat", namespace="prod").items():
            if name.endswith(".yaml"):
                objects += [each for each in yaml.safe_load_all(text) if each]
    for each in objects:
        if not each["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    print(json.dumps(objects))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
