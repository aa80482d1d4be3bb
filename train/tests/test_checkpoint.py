import hashlib
import json
import os
import struct
import tempfile
import unittest

import numpy as np
import torch

from binarymos_train import checkpoint, pack, safetensors
from binarymos_train.config import LlamaConfig
from tests import tiny


class FolderTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, *names):
        return os.path.join(self.folder, *names)


class SafetensorsTest(FolderTest):
    def test_round_trip(self):
        tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3),
                   "b": np.array([], dtype=np.int64),
                   "c": np.arange(5, dtype=np.uint8),
                   "d": np.float32(3.5).reshape(())}
        safetensors.save(self.path("x"), tensors, {"format": "pt"})
        loaded = dict(safetensors.load(self.path("x")))
        self.assertEqual(list(loaded), list(tensors))
        for name, array in tensors.items():
            self.assertEqual(loaded[name].dtype, array.dtype)
            np.testing.assert_array_equal(loaded[name], array)

    def test_bytes_are_those_of_the_format(self):
        safetensors.save(self.path("x"), {"a": np.array([1, 2], np.uint8)})
        with open(self.path("x"), "rb") as file:
            data = file.read()
        length, = struct.unpack("<Q", data[:8])
        self.assertEqual(length % 8, 0)
        self.assertEqual(json.loads(data[8:8 + length]),
                         {"a": {"dtype": "U8", "shape": [2],
                                "data_offsets": [0, 2]}})
        self.assertEqual(data[8 + length:], b"\x01\x02")

    def test_widens_bfloat16(self):
        header = json.dumps({"a": {"dtype": "BF16", "shape": [2],
                                   "data_offsets": [0, 4]}}).encode()
        with open(self.path("x"), "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.write(struct.pack("<HH", 0x3FC0, 0xC000))  # 1.5, -2
        self.assertEqual(dict(safetensors.load(self.path("x")))["a"].tolist(),
                         [1.5, -2.0])

    def test_refuses_a_truncated_file(self):
        safetensors.save(self.path("x"), {"a": np.zeros(8, np.float32)})
        with open(self.path("x"), "rb") as file:
            data = file.read()
        for size in (4, 20, len(data) - 1):
            with open(self.path("x"), "wb") as file:
                file.write(data[:size])
            with self.assertRaises(ValueError):
                dict(safetensors.load(self.path("x")))


class PublishedLayoutTest(FolderTest):
    def make(self, **changes):
        student = checkpoint.make_student(tiny.teacher(**changes), 4, seed=1)
        checkpoint.save_model(self.path("m"), student)
        return student

    def test_names_shapes_and_type_are_those_of_the_published_models(self):
        self.make(attention_bias=True)
        tensors = dict(safetensors.load(self.path("m", "model.safetensors")))
        layer = {name: array.shape for name, array in tensors.items()
                 if name.startswith("model.layers.1.self_attn.k_proj.")}
        prefix = "model.layers.1.self_attn.k_proj."
        self.assertEqual(layer, {
            prefix + "weight": (8, 16), prefix + "bias": (8,),
            prefix + "gate_linear.weight": (4, 16),
            prefix + "in_channel_scale": (4, 16),
            prefix + "out_channel_scale": (4, 8)})
        self.assertEqual({a.dtype for a in tensors.values()},
                         {np.dtype(np.float16)})
        self.assertNotIn("lm_head.weight", tensors)  # tied
        with open(self.path("m", "config.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["num_expert"], 4)

    def test_round_trip_gives_the_float16_model(self):
        student = self.make(tie_word_embeddings=False, mlp_bias=True)
        loaded = checkpoint.load_model(self.path("m"))
        self.assertEqual(loaded.config, student.config)
        got = dict(loaded.named_parameters())
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(got[name], parameter.half().float(),
                                       rtol=0, atol=0)

    def test_reads_shards_through_the_index(self):
        teacher = tiny.teacher()
        checkpoint.save_model(self.path("m"), teacher)
        tensors = dict(safetensors.load(self.path("m", "model.safetensors")))
        names, where = list(tensors), {}
        for i, part in enumerate((names[:5], names[5:])):
            for name in part:
                where[name] = f"part{i}.safetensors"
            safetensors.save(self.path("m", f"part{i}.safetensors"),
                             {name: tensors[name] for name in part})
        os.remove(self.path("m", "model.safetensors"))
        index = self.path("m", "model.safetensors.index.json")
        checkpoint.write_json(index, {"weight_map": where})
        got = dict(checkpoint.load_model(self.path("m")).named_parameters())
        for name, parameter in teacher.named_parameters():
            torch.testing.assert_close(got[name], parameter.half().float(),
                                       rtol=0, atol=0)

    def test_refuses_missing_superfluous_and_misshapen_tensors(self):
        teacher = tiny.teacher()
        good = {k: v for k, v in teacher.named_parameters()}
        for change, message in (
                ({"model.norm.weight": None}, "missing model.norm.weight"),
                ({"extra": torch.zeros(1)}, "unexpected or repeated extra"),
                ({"model.norm.weight": torch.ones(3)}, r"\[3\]")):
            state = {k: v for k, v in {**good, **change}.items()
                     if v is not None}
            checkpoint.save_state(self.path("m"), teacher.config, state)
            with self.assertRaisesRegex(ValueError, message):
                checkpoint.load_model(self.path("m"))

    def test_a_sign_outlives_the_rounding_to_float16(self):
        values = np.array([1e-30, -1e-30, 0, -2e-8, 0.5], np.float32)
        array = checkpoint.to_float16(values)
        self.assertEqual(array.dtype, np.float16)
        self.assertEqual(np.sign(array).tolist(), [1, -1, 0, -1, 1])
        self.assertLess(abs(array[:4]).max(), 1e-7)

    def test_refuses_a_value_beyond_float16(self):
        teacher = tiny.teacher()
        with torch.no_grad():
            teacher.model.norm.weight[0] = 1e6
        with self.assertRaisesRegex(ValueError, "float16"):
            checkpoint.save_model(self.path("m"), teacher)

    def test_refuses_configurations_that_are_not_ours(self):
        for change, message in (
                ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "linear"),
                ({"hidden_act": "gelu"}, "hidden_act"),
                ({"quantization_config": {}}, "packed model"),
                ({"num_attention_heads": 3}, "multiple")):
            checkpoint.write_json(self.path("config.json"),
                                  {**tiny.config().to_json(), **change})
            with self.assertRaisesRegex(ValueError, message):
                LlamaConfig.load(self.folder)


class PackTest(FolderTest):
    def test_bit_i_of_byte_j_is_weight_8j_plus_i(self):
        weight = -np.ones((2, 16), np.float16)
        weight[0, 0] = weight[0, 10] = weight[1, 15] = 1
        signs, zeros = pack.pack_signs(weight)
        self.assertEqual(signs.tolist(), [[1, 4], [0, 128]])
        self.assertEqual(zeros, 0)
        np.testing.assert_array_equal(pack.unpack_signs(signs), weight)

    def test_zeros_become_plus_one_and_are_counted(self):
        weight = -np.ones((1, 8), np.float16)
        weight[0, 2] = 0.0
        weight[0, 3] = -0.0
        signs, zeros = pack.pack_signs(weight)
        self.assertEqual((signs.tolist(), zeros), ([[12]], 2))

    def test_packed_model_computes_what_the_student_computes(self):
        student = checkpoint.make_student(
            tiny.teacher(attention_bias=True), 4, seed=1)
        with torch.no_grad():
            student.model.layers[0].mlp.up_proj.weight[3, 5] = 0
        checkpoint.save_model(self.path("m"), student)
        zeros = pack.pack(self.path("m"), self.path("p"))
        self.assertEqual(zeros, {"model.layers.0.mlp.up_proj": 1})

        with open(self.path("p", "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.assertNotIn("num_expert", config)
        self.assertEqual(config["quantization_config"],
                         {"quant_method": "binarymos", "num_experts": 4,
                          "version": 1})
        names = {"sign": "weight", "gate": "gate_linear.weight",
                 "in_scale": "in_channel_scale",
                 "out_scale": "out_channel_scale"}
        state = {}
        for name, array in safetensors.load(
                self.path("p", "model.safetensors")):
            if name.endswith(".sign"):
                array = pack.unpack_signs(array)
            else:
                self.assertEqual(array.dtype, np.float16)
            owner, _, last = name.rpartition(".")
            state[f"{owner}.{names.get(last, last)}"] = torch.from_numpy(
                array.astype(np.float32))
        loaded = checkpoint.load_model(self.path("m"))
        tokens = torch.randint(0, 64, (2, 9))
        with torch.no_grad():
            loaded.model.layers[0].mlp.up_proj.weight[3, 5] = 1
        want = loaded(tokens)[0]
        loaded.load_state_dict(state)
        torch.testing.assert_close(loaded(tokens)[0], want, rtol=0, atol=0)

    def test_packed_model_has_a_manifest_of_its_other_files(self):
        checkpoint.save_model(self.path("m"), checkpoint.make_student(
            tiny.teacher(), 1, seed=1))
        pack.pack(self.path("m"), self.path("p"))
        with open(self.path("p", "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        self.assertEqual(manifest["version"], 1)
        self.assertEqual(sorted([*manifest["files"], "manifest.json"]),
                         sorted(os.listdir(self.path("p"))))
        for name, facts in manifest["files"].items():
            with open(self.path("p", name), "rb") as file:
                data = file.read()
            self.assertEqual(facts, {"bytes": len(data), "sha256":
                                     hashlib.sha256(data).hexdigest()})

    def test_one_expert_is_packed_without_a_router(self):
        student = checkpoint.make_student(tiny.teacher(), 1, seed=1)
        tensors, _ = pack.pack_tensors(student)
        self.assertFalse([name for name in tensors if name.endswith("gate")])
        self.assertEqual(
            tensors["model.layers.0.mlp.down_proj.in_scale"].shape, (1, 24))

    def test_what_is_unpacked_computes_the_same_and_packs_to_the_same(self):
        for experts in (1, 4):
            student = checkpoint.make_student(
                tiny.teacher(attention_bias=True), experts, seed=1)
            m, p, u, again = (self.path(f"{name}{experts}")
                              for name in ("m", "p", "u", "again"))
            checkpoint.save_model(m, student)
            pack.pack(m, p)
            pack.unpack(p, u)
            tokens = torch.randint(0, 64, (2, 9))
            torch.testing.assert_close(
                checkpoint.load_model(u)(tokens)[0],
                checkpoint.load_model(m)(tokens)[0], rtol=0, atol=0)
            pack.pack(u, again)
            for name in ("config.json", "model.safetensors"):
                with open(os.path.join(p, name), "rb") as first, \
                        open(os.path.join(again, name), "rb") as second:
                    self.assertEqual(first.read(), second.read(), name)

    def test_refuses_a_float_model(self):
        checkpoint.save_model(self.path("m"), tiny.teacher())
        with self.assertRaisesRegex(ValueError, "num_expert"):
            pack.pack(self.path("m"), self.path("p"))
        self.assertFalse(os.path.exists(self.path("p")))


if __name__ == "__main__":
    unittest.main()
