"""Calls of MCP clients: made in this process, with files of the caller only, and with progress."""

import base64
import binascii
import copy
import re
from typing import Any
from urllib.parse import unquote

from gradio.block_function import BlockFunction
from mcp import types
from mcp.server.lowlevel.server import request_ctx

from filmlet.jobs import Job
from filmlet.ui.callers import Callers, owner_of
from filmlet.ui.files import URL, file_data

DATA_URL = re.compile(r"data:[\w.+-]+/([\w.+-]+);base64,", re.ASCII)
# Gradio answers these by a request to the Host of whoever asked first; the page has only tools.
NO_TOOLS = (
    types.ListPromptsRequest, types.GetPromptRequest, types.ListResourcesRequest,
    types.ReadResourceRequest, types.ListResourceTemplatesRequest,
)  # fmt: skip


def restrict_mcp(server: Any, callers: Callers) -> None:
    """Call functions at once instead of over HTTP: Gradio asks itself by the Host of whoever came
    first, sends everybody's key there, and shares one session among all."""
    find = server.get_block_fn_from_endpoint_name

    def find_direct(name: str) -> BlockFunction | None:
        function = copy.copy(find(name))
        if function is not None:
            function.queue = False
        return function

    def read_files(arguments: dict[str, Any], positions: list[list[Any]]) -> dict[str, Any]:
        owner = owner_of(server.mcp_server.request_context)
        for name in {str(position[0]) for position in positions} & arguments.keys():
            sent = arguments[name]
            arguments = {**arguments, name: _read_file(sent, callers, owner) if sent else None}
        return arguments

    format_output = server.postprocess_output_data

    def format_clip(outputs: list[Any], root_url: str) -> Any:
        """A tool has one result, the clip's URL; a seed beside it is for programs of the Space."""
        return format_output(outputs[:1], root_url)

    server.postprocess_output_data = format_clip
    for request in NO_TOOLS:
        server.mcp_server.request_handlers.pop(request, None)
    server.get_block_fn_from_endpoint_name = find_direct
    server.convert_strings_to_filedata = read_files


def _read_file(text: Any, callers: Callers, owner: str) -> dict[str, Any]:
    """The file of a tool's argument: a data: URL, or the id or URL of an uploaded one."""
    match = DATA_URL.match(str(text))
    if match is None:
        return file_data(unquote(str(text).rpartition(URL)[2]))
    try:
        data = base64.b64decode(str(text)[match.end() :])
    except binascii.Error as error:
        raise ValueError("The base64 of a file cannot be read.") from error
    path = callers.files.new_path(f"file.{match[1]}")
    path.write_bytes(data)
    return file_data(callers.files.add(path, owner))


class ToolProgress:
    """Tells the MCP client of this call how far its job is, if it asked for that."""

    def __init__(self) -> None:
        self.context = request_ctx.get(None)
        self.percent = -1

    async def send(self, job: Job) -> None:
        """MCP wants numbers that grow, so a job that begins anew is told when it is ahead again."""
        percent = int(100 * job.progress)
        token = self.context.meta.progressToken if self.context and self.context.meta else None
        if self.context is None or token is None or percent <= self.percent:
            return
        self.percent = percent
        await self.context.session.send_progress_notification(
            token, percent, 100, str(job.status), str(self.context.request_id)
        )
