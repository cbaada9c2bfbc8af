"""Listen to a microphone, or to sound on standard input, and print what is heard as it is heard.

python -m infer.listen
arecord -f S16_LE -r 16000 | python -m infer.listen - --json
"""

from cache.cli import command
from infer.options import ListenOptions


@command(ListenOptions)
def main(options: ListenOptions) -> int:
    """Listen until the sound ends, or Ctrl-C."""
    from infer.listen.listen import keeps_up, listen

    if options.onnx:
        from infer.onnx_model import OnnxModel

        model = OnnxModel(options.onnx, threads=1)
        return listen(options, model if keeps_up(model) else OnnxModel(options.onnx))

    from infer.listen.members import listen_with_members
    from train.world import run_in_world

    return run_in_world(options.device, lambda world: listen_with_members(options, world))


if __name__ == "__main__":
    raise SystemExit(main())
