"""What `generate` and `chat` say beside the text, on stderr, so that a pipe receives the text alone.

say_cut_off(256)
"""


def say_cut_off(max_new_tokens: int) -> None:
    """One dim line: the text did not end by itself."""
    import typer

    note = f"[stopped after {max_new_tokens} tokens; --max-new-tokens raises the limit]"
    typer.secho(note, dim=True, err=True)


def say_nothing_written() -> None:
    """One dim line: the model ended the text with its first token."""
    import typer

    note = "[the model ended the text at once; a tuned model answers in `chat`, another --seed or --temperature may go on]"
    typer.secho(note, dim=True, err=True)
