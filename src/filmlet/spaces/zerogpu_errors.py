"""ZeroGPU's refusals, in sentences that tell a visitor what to do."""

import re

import gradio as gr

from filmlet.errors import FilmletError, GpuBusy, GpuLost, GpuQuotaUsed, GpuTooLong, GpuUnavailable


def to_filmlet_error(error: Exception, seconds: int) -> FilmletError:
    """Return the refusal of a call that asked for so many seconds."""
    title = getattr(error, "title", "") if isinstance(error, gr.Error) else ""
    said = str(error.message) if isinstance(error, gr.Error) else str(error)
    match title.removeprefix("ZeroGPU "):
        case "quota exceeded":
            return _gpu_quota_error(said, seconds)
        case "pending credits exceeded":
            return GpuQuotaUsed(
                "All your GPU credits are promised to clips that are being made; wait for one of "
                "them, then press Continue."
            )
        case "illegal duration":
            return GpuTooLong(
                f"This clip would need a GPU for {seconds} s, longer than ZeroGPU lends one to "
                "you. Make it shorter or smaller, or run the Space on hardware of its own."
            )
        case "queue timeout":
            return _gpu_busy_error()
        case "client error" if "token" in said:
            return GpuUnavailable("This page is open for too long; reload it, then press Continue.")
        case "client error":
            return _gpu_busy_error()
        case "worker error":
            return _gpu_lost_error(said, seconds)
        case _:
            return _gpu_refused_error(said)


def _gpu_lost_error(said: str, seconds: int) -> GpuLost:
    if "aborted" in said:
        return GpuLost(
            f"The GPU was taken away before the clip was done: it was lent for {seconds} s. What "
            "was done is kept."
        )
    return GpuLost(f"The process on the GPU failed ({said}); the Space's log says more.")


def _gpu_refused_error(said: str) -> GpuUnavailable:
    if "closed by visitor" in said:
        return GpuBusy("The page was closed while the clip waited for a GPU.")
    return GpuUnavailable(f"ZeroGPU lent no GPU: {said}")


def _gpu_busy_error() -> GpuBusy:
    return GpuBusy("No GPU became free within a minute: many people want one now.")


def _gpu_quota_error(said: str, seconds: int) -> GpuUnavailable:
    if "No GPU was available" in said:
        return _gpu_busy_error()
    if "Space app" in said:
        return GpuQuotaUsed(
            "Who is not signed in shares this Space's own GPU time, which is used up. Open the "
            "Space on huggingface.co and sign in, or send a token with your request."
        )
    remaining = re.search(r"vs\. (\d+)s left", said)
    again = re.search(r"Try again in ([^.]*\d)", said)
    has = f", you have {remaining[1]} s left" if remaining else ""
    wait = f" More comes in {again[1]}." if again else ""
    return GpuQuotaUsed(
        f"Your GPU time for today is used up: this clip asks for {seconds} s{has}.{wait} A "
        "shorter or smaller clip asks for less; a PRO account has more."
    )
