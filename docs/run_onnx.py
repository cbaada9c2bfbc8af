"""Label and confidence of recordings, with onnxruntime and soundfile only: python run_onnx.py model.onnx *.wav"""

import json
import sys

import onnxruntime
import soundfile

model, *paths = sys.argv[1:] if sys.argv[2:] else sys.exit("python run_onnx.py model.onnx *.wav")
about = (net := onnxruntime.InferenceSession(model)).get_modelmeta().custom_metadata_map
classes, thresholds = json.loads(about["classes"]), json.loads(about["thresholds"])
for path in paths:
    samples, rate = soundfile.read(path, net.get_inputs()[0].shape[1], fill_value=0, dtype="float32", always_2d=True)
    if rate != int(about["sample_rate"]) or soundfile.info(path).frames > len(samples):
        raise SystemExit(f"{path}: bring it to {about['sample_rate']} Hz and {about['clip_seconds']} s at most")
    (probs,) = net.run(None, {"waveform": samples.mean(axis=1)[None]})[0]
    label = classes[probs.argmax()] if probs.max() <= 1 else "(not a finite recording)"
    print(path, "unknown" if probs.max() < thresholds.get(label, 0) else label, f"{probs.max():.4f}")
