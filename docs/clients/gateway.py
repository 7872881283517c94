"""Asks Canopy's gateway one question: python gateway.py HOST PORT KEY "a question"."""

import json
import socket
import sys
import time

host, port, key, text = sys.argv[1:5]
with socket.create_connection((host, int(port)), timeout=600) as connection:
    lines = connection.makefile("rw", encoding="utf-8", newline="\n")
    lines.write(json.dumps({"key": key}) + "\n")
    lines.write(json.dumps({"text": text, "timestamp": time.time()}) + "\n")
    lines.flush()
    for line in lines:
        frame = json.loads(line) if line.strip() else {"kind": "alive"}
        if frame["kind"] == "text":
            print(frame["text"], end="", flush=True)
        elif frame["kind"] == "error":
            sys.exit(frame["message"])
        elif frame["kind"] == "done":
            print()
            break
