"""`patchword serve`: the web page and the service behind it."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from patchword.cli.caption import DEFAULT_MODEL
from patchword.cli.index import DEFAULT_MODEL as DEFAULT_TOWERS
from patchword.lookup import import_torch


def serve(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Shipped name, folder or hub id; may be repeated.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", help="Folder made by `patchword index`: adds search.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback it needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8321,
    token: Annotated[
        str | None,
        typer.Option(envvar="PATCHWORD_TOKEN", help="What every request must carry.", show_envvar=True),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; chosen where left out.")] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=256, help="Largest number of requests that run together.")
    ] = 16,
    queue: Annotated[
        int, typer.Option(min=1, max=10_000, help="Requests that may wait; the next one is refused.")
    ] = 64,
    deadline: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds from a request to its answer.")
    ] = 30.0,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", min=1, max=1000, help="Copies of the service, on Ray Serve; one without."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="--replicas: local, or auto: the cluster that this machine is in."),
    ] = None,
) -> None:
    """Serve a page on which a photograph is dropped and captioned, and a JSON API behind it."""
    from patchword.errors import ConfigError, MissingExtra

    try:
        import fastapi  # noqa: F401 - so that what is missing is said before a model is loaded
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"'patchword serve' needs {error.name}: pip install 'patchword[serve]'") from error
    from patchword.serve.limits import Limits
    from patchword.serve.run import check_address, take_port
    from patchword.serve.run import serve as run

    check_address(host, token)
    import_torch()
    from patchword.serve.loading import ShippedNames, app_of

    if cluster is not None and replicas is None:
        raise ConfigError("--cluster is for --replicas: say how many, or leave it out")
    limits = Limits(batch=batch, queue=queue, deadline_seconds=deadline)
    shipped = ShippedNames(DEFAULT_MODEL, DEFAULT_TOWERS, answerer=None)
    settings: dict[str, Any] = {"names": model or [], "index": None if index is None else str(index)}
    settings |= {"shipped": tuple(shipped), "device": device, "token": token, "limits": limits}
    with take_port(host, port) as taken, ExitStack() as ended:  # before the models, which take seconds
        end_soon = None
        if replicas is None:
            app: Any = app_of(**settings)
        else:
            from patchword.serve.replicas import deployed

            app = ended.enter_context(deployed(settings, replicas, cluster or "local"))
            end_soon = app.end_soon
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        try:
            run(
                app,
                taken,
                limits,
                lambda: print(f"Patchword is ready at {address} (Ctrl+C ends it)", flush=True),
                *(() if end_soon is None else (end_soon,)),
            )
        except SystemExit:  # SIGTERM, and every request is answered
            ended.close()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # taking the interpreter apart takes seconds on a busy machine
