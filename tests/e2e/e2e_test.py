"""Drives the real binary from outside: a process, ports, and a gRPC client that
is not ours (grpcio, with stubs generated from proto/).

Run by ctest:  e2e_test.py --binary B --proto proto/ --work scratch directory
Exits with 77 (skipped) where grpcio is not installed.
"""

import argparse
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
try:
    import google.protobuf  # noqa: F401  (the stubs need it)
    import grpc
except ImportError as error:
    print(f"skipped: {error}; Debian: python3-grpcio python3-protobuf")
    sys.exit(77)
for tool in ("protoc", "grpc_python_plugin"):
    if shutil.which(tool) is None:
        print(f"skipped: no {tool}; Debian: protobuf-compiler-grpc")
        sys.exit(77)

OPTIONS = argparse.Namespace()
# Filled in by generate_stubs().
pb = None
stubs = None

CANARY = "Zanzibar"  # in prompts; must never be in a log


def generate_stubs(proto_dir, out_dir):
    """Imports modules made from the .proto files into this one."""
    global pb, stubs
    out_dir.mkdir(parents=True, exist_ok=True)
    plugin = shutil.which("grpc_python_plugin")
    protos = sorted(str(p) for p in proto_dir.glob("binarymos/v1/*.proto"))
    subprocess.run(
        ["protoc", f"-I{proto_dir}", f"--python_out={out_dir}",
         f"--grpc_out={out_dir}", f"--plugin=protoc-gen-grpc={plugin}",
         *protos], check=True)
    sys.path.insert(0, str(out_dir))
    from binarymos.v1 import inference_pb2, inference_pb2_grpc
    pb, stubs = inference_pb2, inference_pb2_grpc


def run(*arguments, timeout=60, env=None, stdin=""):
    """A finished `binarymos` process."""
    environment = {k: v for k, v in os.environ.items()
                   if not k.startswith("BINARYMOS_")}
    environment.update(env or {})
    return subprocess.run([OPTIONS.binary, *arguments], text=True, input=stdin,
                          capture_output=True, timeout=timeout * OPTIONS.slow,
                          env=environment, check=False)


class Server:
    """A `binarymos serve` process around the shared model, on free ports."""

    def __init__(self, *flags):
        self.dir = OPTIONS.work / f"server-{time.monotonic_ns()}"
        self.dir.mkdir(parents=True)
        ports = self.dir / "ports"
        self.log = self.dir / "log"
        environment = {k: v for k, v in os.environ.items()
                       if not k.startswith("BINARYMOS_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [OPTIONS.binary, "serve", str(OPTIONS.model), "--grpc-port",
                 "0", "--http-port", "0", "--port-file", str(ports),
                 "--served-model-name", "tiny", "--log-format", "json",
                 "--log-level", "debug", "--max-num-seqs", "64",
                 "--kv-cache-memory", "256MiB", *flags],
                stderr=log, env=environment)
        deadline = time.monotonic() + 60 * OPTIONS.slow
        while not ports.exists():
            if self.process.poll() is not None:
                raise RuntimeError("the server ended: " + self.log_text())
            if time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("the server did not start in time")
            time.sleep(0.02)
        lines = dict(line.split("=") for line in
                     ports.read_text(encoding="utf-8").split())
        self.address = f"127.0.0.1:{lines['grpc']}"
        self.http_port = int(lines["http"])

    def log_text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def channel(self):
        # A connection of its own, not one shared with other channels.
        return grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def metrics(self):
        """{'name{labels}' or 'name': value} of one scrape."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.http_port, timeout=10 * OPTIONS.slow)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def metric(self, name):
        """Sum over labels."""
        values = [value for key, value in self.metrics().items()
                  if key == name or key.startswith(name + "{")]
        if not values:
            raise KeyError(name)
        return sum(values)

    def wait_for_metric(self, name, wanted, seconds):
        """Seconds until `wanted(value)`; fails after `seconds`."""
        start = time.monotonic()
        while True:
            value = self.metric(name)
            elapsed = time.monotonic() - start
            if wanted(value):
                return elapsed
            if elapsed > seconds * OPTIONS.slow:
                raise AssertionError(
                    f"{name} is {value} after {elapsed:.2f} s")
            time.sleep(0.01)

    def stop(self):
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60 * OPTIONS.slow)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def request(prompt="Hello there", max_tokens=24, **fields):
    """A greedy request that runs to max_tokens."""
    message = pb.GenerateRequest()
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.tokens.ids.extend(prompt)
    message.stop.max_tokens = max_tokens
    message.stop.ignore_eos = fields.pop("ignore_eos", True)
    message.sampling.temperature = fields.pop("temperature", 0.0)
    if "seed" in fields:
        message.sampling.seed = fields.pop("seed")
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def collect(messages):
    """({sample: (text, tokens, finish reason)}, first, last) of a stream."""
    samples, first, last = {}, None, None
    for message in messages:
        first = first or message
        last = message
        for delta in message.deltas:
            text, tokens, _ = samples.get(delta.index, ("", [], 0))
            samples[delta.index] = (text + delta.text,
                                    tokens + list(delta.token_ids),
                                    delta.finish_reason)
    return samples, first, last


def check_health(channel, service=""):
    """ServingStatus of grpc.health.v1: 1 is SERVING, 2 is NOT_SERVING."""
    name = service.encode()
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda text: (
            b"\x0a" + bytes([len(text)]) + text if text else b""),
        response_deserializer=lambda data: data[1] if data else 0)
    return check(name, timeout=10 * OPTIONS.slow)


class ServingTest(unittest.TestCase):
    """Tests that share one server and leave it as they found it."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.channel = cls.server.channel()
        cls.inference = stubs.InferenceStub(cls.channel)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        status = cls.server.stop()
        assert status == 0, f"exit status {status}: {cls.server.log_text()}"

    def assert_agree(self, message):
        """Generate and GenerateStream give the same answer; the answer."""
        answer = self.inference.Generate(message)
        samples, first, last = collect(self.inference.GenerateStream(message))
        self.assertEqual(len(samples), len(answer.completions))
        for completion in answer.completions:
            text, tokens, reason = samples[completion.index]
            self.assertEqual(tokens, list(completion.token_ids))
            self.assertEqual(text, completion.text)
            self.assertEqual(reason, completion.finish_reason)
        self.assertTrue(first.started.request_id)
        self.assertEqual(first.started.model, "tiny")
        self.assertEqual(last.ended.usage.completion_tokens,
                         answer.usage.completion_tokens)
        return answer

    def test_greedy_tokens_are_the_same_from_both_calls(self):
        answer = self.assert_agree(request(max_tokens=40))
        self.assertEqual(len(answer.completions[0].token_ids), 40)
        self.assertEqual(answer.completions[0].finish_reason,
                         pb.FINISH_REASON_LENGTH)
        self.assertEqual(answer.usage.completion_tokens, 40)

    def test_seeded_tokens_are_the_same_from_both_calls(self):
        answers = [self.assert_agree(request(temperature=1.0, seed=seed))
                   for seed in (1, 2)]
        self.assertEqual([answer.seed for answer in answers], [1, 2])
        self.assertNotEqual(list(answers[0].completions[0].token_ids),
                            list(answers[1].completions[0].token_ids))

    def test_several_samples_are_the_same_from_both_calls(self):
        answer = self.assert_agree(request(temperature=1.0, seed=3, n=3))
        tokens = {tuple(c.token_ids) for c in answer.completions}
        self.assertEqual(len(tokens), 3)

    def test_a_prompt_of_ids_is_the_text_it_stands_for(self):
        tokens = self.inference.Tokenize(
            pb.TokenizeRequest(text="Hello there")).token_ids
        by_text = self.inference.Generate(request("Hello there"))
        by_ids = self.inference.Generate(request(list(tokens)))
        self.assertEqual(by_ids.completions[0].token_ids,
                         by_text.completions[0].token_ids)
        text = self.inference.Detokenize(
            pb.DetokenizeRequest(token_ids=tokens)).text
        self.assertEqual(text, "Hello there")

    def test_a_stop_string_ends_the_text_before_it(self):
        message = request(max_tokens=64)
        text = self.inference.Generate(message).completions[0].text
        stop = text[len(text) // 2:][:3]
        message.stop.stop_strings.append(stop)
        completion = self.assert_agree(message).completions[0]
        self.assertEqual(completion.text, text[:text.index(stop)])
        self.assertEqual(completion.finish_reason,
                         pb.FINISH_REASON_STOP_STRING)
        self.assertEqual(completion.matched_stop_string, stop)

    def test_sixty_four_streams_finish_with_the_answers_of_one(self):
        prompts = [f"Story number {i}" for i in range(64)]
        alone = {prompt: list(self.inference.Generate(
            request(prompt, 32)).completions[0].token_ids)
                 for prompt in prompts[:8]}
        together, errors = {}, []

        def stream(prompt):
            try:
                with self.server.channel() as channel:
                    # grpcio 1.51 has been seen to report ENOENT for one of
                    # many connects at once; a waiting call tries again.
                    samples, _, _ = collect(stubs.InferenceStub(
                        channel).GenerateStream(request(prompt, 32),
                                                wait_for_ready=True))
                    together[prompt] = samples[0][1]
            except grpc.RpcError as error:
                errors.append(error)

        threads = [threading.Thread(target=stream, args=(prompt,))
                   for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual({len(tokens) for tokens in together.values()}, {32})
        for prompt, tokens in alone.items():
            self.assertEqual(together[prompt], tokens)

    def test_killing_half_of_the_streams_returns_every_block(self):
        # The killed half lives in a process of its own. The other half is
        # short, so that whatever is in use afterwards would be the leak.
        victim = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--hold-streams", "32",
             "--address", self.server.address], stdout=subprocess.PIPE)
        try:
            self.assertEqual(victim.stdout.readline(), b"streaming\n")
            streams = [self.inference.GenerateStream(request(f"Short {i}", 8))
                       for i in range(32)]
            for stream in streams:
                self.assertEqual(len(collect(stream)[0][0][1]), 8)
            self.assertEqual(
                self.server.metric("binarymos_num_requests_running"), 32)
            self.assertGreater(
                self.server.metric("binarymos_kv_cache_usage_perc"), 0)
        finally:
            victim.kill()
            victim.wait()
            victim.stdout.close()
        elapsed = self.server.wait_for_metric(
            "binarymos_kv_cache_usage_perc", lambda usage: usage == 0, 1.0)
        print(f"\n  blocks of 32 killed streams were back in {elapsed:.3f} s")
        self.assertEqual(
            self.server.metric("binarymos_num_requests_running"), 0)
        self.assertEqual(
            self.server.metric("binarymos_num_requests_waiting"), 0)
        self.server.wait_for_metric("binarymos_streams_open",
                                    lambda streams: streams == 0, 1.0)
        self.assert_agree(request("After that"))

    def test_a_deadline_ends_the_request_on_both_sides(self):
        with self.assertRaises(grpc.RpcError) as caught:
            collect(self.inference.GenerateStream(
                request(max_tokens=1900), timeout=0.3))
        self.assertEqual(caught.exception.code(),
                         grpc.StatusCode.DEADLINE_EXCEEDED)
        self.server.wait_for_metric("binarymos_kv_cache_usage_perc",
                                    lambda usage: usage == 0, 1.0)

    def test_errors_are_statuses_that_name_the_field(self):
        for message, code, word in [
            (request(temperature=-1.0), "INVALID_ARGUMENT", "temperature"),
            (request(max_tokens=0), "INVALID_ARGUMENT", "max_tokens"),
            (request(max_tokens=100000), "OUT_OF_RANGE", "max_tokens"),
            (request([10**6]), "INVALID_ARGUMENT", "token"),
            (request(model="other"), "NOT_FOUND", "other"),
            (pb.GenerateRequest(), "INVALID_ARGUMENT", "prompt"),
        ]:
            with self.subTest(code=code, word=word):
                with self.assertRaises(grpc.RpcError) as caught:
                    self.inference.Generate(message)
                self.assertEqual(caught.exception.code().name, code)
                self.assertIn(word, caught.exception.details())

    def test_the_request_id_comes_back_and_no_prompt_is_logged(self):
        call = self.inference.GenerateStream(
            request(f"{CANARY} {CANARY}"),
            metadata=[("x-request-id", "e2e-canary")])
        metadata = dict(call.initial_metadata())
        collect(call)
        self.assertEqual(metadata["x-request-id"], "e2e-canary")
        lines = [json.loads(line)
                 for line in self.server.log_text().splitlines()]
        self.assertTrue(any(line.get("request_id") == "e2e-canary"
                            for line in lines))
        self.assertNotIn(CANARY, self.server.log_text())

    def test_counters_count_what_was_served(self):
        before = self.server.metrics()
        self.inference.Generate(request(max_tokens=7))
        self.server.wait_for_metric("binarymos_num_requests_running",
                                    lambda running: running == 0, 1.0)
        after = self.server.metrics()

        def delta(name):
            return sum(after[key] - before.get(key, 0) for key in after
                       if key == name or key.startswith(name + "{"))

        self.assertEqual(delta("binarymos_generation_tokens_total"), 7)
        self.assertEqual(delta("binarymos_request_success_total"), 1)
        self.assertEqual(
            delta("binarymos_time_to_first_token_seconds_count"), 1)
        for name in ["num_requests_running", "num_requests_waiting",
                     "kv_cache_usage_perc", "cache_config_info",
                     "lora_requests_info"]:
            self.assertTrue(any(key.startswith(f"vllm:{name}{{")
                                for key in after), name)

    def test_health_answers_for_every_name(self):
        for name in ["", "liveness", "readiness", "binarymos.v1.Inference",
                     "binarymos.v1.Control"]:
            self.assertEqual(check_health(self.channel, name), 1, name)
        with self.assertRaises(grpc.RpcError) as caught:
            check_health(self.channel, "no.such.Service")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    # The same server through our own client.

    def test_the_command_streams_the_text_that_grpcio_gets(self):
        text = self.inference.Generate(request("Hi", 24)).completions[0].text
        for flags in ([], ["--stream"]):
            done = run("generate", "--server", self.server.address, "--prompt",
                       "Hi", "--max-tokens", "24", "--temperature", "0",
                       "--ignore-eos", *flags)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stdout.removesuffix("\n"),
                             text.removesuffix("\n"))
            self.assertIn("24 generated", done.stderr)

    def test_the_command_reads_a_prompt_from_standard_input(self):
        done = run("generate", "--server", self.server.address, "--json",
                   "--max-tokens", "3", "--temperature", "0", "--ignore-eos",
                   stdin="Hi")
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        expected = self.inference.Generate(request("Hi", 3)).completions[0]
        self.assertEqual(answer["completions"][0]["token_ids"],
                         list(expected.token_ids))

    def test_the_command_names_the_status_of_an_error(self):
        done = run("generate", "--server", self.server.address, "--prompt",
                   "Hi", "--model", "other")
        self.assertEqual(done.returncode, 1)
        self.assertIn("NOT_FOUND", done.stderr)
        done = run("generate", "--server", self.server.address, "--prompt",
                   "Hi", "--top-p", "7")
        self.assertEqual(done.returncode, 1)
        self.assertIn("INVALID_ARGUMENT", done.stderr)
        self.assertIn("top_p", done.stderr)

    def test_interrupting_the_command_cancels_the_request(self):
        client = subprocess.Popen(
            [OPTIONS.binary, "generate", "--server", self.server.address,
             "--stream", "--json", "--prompt", "Hi", "--max-tokens", "1900",
             "--ignore-eos"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertTrue(client.stdout.readline())
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30 * OPTIONS.slow)
        self.assertEqual(client.returncode, 1)
        self.assertIn(b"CANCELLED", errors)
        self.server.wait_for_metric("binarymos_kv_cache_usage_perc",
                                    lambda usage: usage == 0, 1.0)

    def test_the_health_command_exits_by_the_answer(self):
        address = self.server.address
        done = run("health", "--server", address, "--service", "readiness",
                   "--timeout", "20s")
        self.assertEqual((done.returncode, done.stdout), (0, "SERVING\n"))
        done = run("health", "--server", address, "--service", "nobody",
                   "--timeout", "20s")
        self.assertEqual(done.returncode, 1)
        self.assertIn("NOT_FOUND", done.stderr)

    def test_a_port_in_use_is_an_error(self):
        port = self.server.address.split(":")[1]
        done = run("serve", str(OPTIONS.model), "--grpc-port", port,
                   "--http-port", "-1", "--kv-cache-memory", "16MiB")
        self.assertEqual(done.returncode, 1)
        self.assertIn("UNAVAILABLE", done.stderr)
        self.assertIn(port, done.stderr)


class ShutdownTest(unittest.TestCase):

    def start(self, *flags):
        server = Server(*flags)
        self.addCleanup(server.kill)
        return server

    def test_sigterm_finishes_streams_refuses_others_and_exits_with_0(self):
        server = self.start()
        with server.channel() as channel:
            inference = stubs.InferenceStub(channel)
            stream = inference.GenerateStream(request(max_tokens=400))
            first = next(stream)
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 5 * OPTIONS.slow
            while check_health(channel, "readiness") == 1:
                self.assertLess(time.monotonic(), deadline)
            with self.assertRaises(grpc.RpcError) as caught:
                inference.Generate(request("Too late"))
            self.assertEqual(caught.exception.code(),
                             grpc.StatusCode.UNAVAILABLE)
            samples, _, last = collect(stream)
        num_tokens = (sum(len(d.token_ids) for d in first.deltas) +
                      len(samples[0][1]))
        self.assertEqual(num_tokens, 400)
        self.assertEqual(last.ended.usage.completion_tokens, 400)
        self.assertEqual(server.process.wait(timeout=30 * OPTIONS.slow), 0)

    def test_an_idle_server_exits_with_0_on_sigint_too(self):
        server = self.start()
        server.process.send_signal(signal.SIGINT)
        self.assertEqual(server.process.wait(timeout=30 * OPTIONS.slow), 0)

    def test_a_second_signal_stops_at_once(self):
        server = self.start("--drain-timeout", "10m")
        with server.channel() as channel:
            stream = stubs.InferenceStub(channel).GenerateStream(
                request(max_tokens=2000))
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            with self.assertRaises(grpc.RpcError) as caught:
                collect(stream)
            self.assertEqual(caught.exception.code(),
                             grpc.StatusCode.UNAVAILABLE)
            server.process.wait(timeout=30 * OPTIONS.slow)
        self.assertLess(time.monotonic() - start, 5 * OPTIONS.slow)

    def test_the_drain_timeout_ends_streams_that_are_too_long(self):
        server = self.start("--drain-timeout", "200ms")
        with server.channel() as channel:
            stream = stubs.InferenceStub(channel).GenerateStream(
                request(max_tokens=2000))
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            with self.assertRaises(grpc.RpcError) as caught:
                collect(stream)
            self.assertEqual(caught.exception.code(),
                             grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(server.process.wait(timeout=30 * OPTIONS.slow), 1)

    def test_during_the_drain_delay_requests_are_still_accepted(self):
        server = self.start("--drain-delay", "2s")
        with server.channel() as channel:
            inference = stubs.InferenceStub(channel)
            inference.Generate(request(max_tokens=1))
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 1
            while check_health(channel, "readiness") == 1:
                self.assertLess(time.monotonic(), deadline)
            answer = inference.Generate(request(max_tokens=2))
            self.assertEqual(answer.usage.completion_tokens, 2)
        self.assertEqual(server.process.wait(timeout=30 * OPTIONS.slow), 0)


class CommandTest(unittest.TestCase):

    def assert_usage_error(self, *arguments, words, env=None):
        done = run(*arguments, env=env)
        self.assertEqual(done.returncode, 2, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_misspellings_are_answered_with_the_nearest_name(self):
        model = str(OPTIONS.model)
        self.assert_usage_error("srve", words=["'srve'", "'serve'"])
        self.assert_usage_error("serve", model, "--grcp-port", "1",
                                words=["--grcp-port", "'--grpc-port'"])
        self.assert_usage_error("generate", "--max-token=3",
                                words=["--max-token", "'--max-tokens'"])
        self.assert_usage_error("serve", model,
                                env={"BINARYMOS_DEVIEC": "cpu"},
                                words=["BINARYMOS_DEVIEC", "BINARYMOS_DEVICE"])
        config = OPTIONS.work / "bad.toml"
        config.write_text('hots = "127.0.0.1"\n', encoding="utf-8")
        self.assert_usage_error("serve", model, "--config", str(config),
                                words=["bad.toml:1", "'hots'", "'host'"])

    def test_bad_values_are_usage_errors(self):
        model = str(OPTIONS.model)
        self.assert_usage_error("serve", words=["model"])
        self.assert_usage_error("serve", model, "--grpc-port", "http",
                                words=["--grpc-port", "'http'"])
        self.assert_usage_error("serve", model, "--grpc-port", "70000",
                                words=["grpc-port", "65535"])
        self.assert_usage_error("serve", model, "--drain-timeout", "30",
                                words=["--drain-timeout", "30s"])
        self.assert_usage_error("serve", model, "--log-level", "loud",
                                words=["log-level", "info"])

    def test_a_missing_model_is_a_failure_that_names_it(self):
        done = run("serve", "/nonexistent/model", "--grpc-port", "0",
                   "--http-port", "-1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nonexistent/model", done.stderr)
        self.assertIn("NOT_FOUND", done.stderr)

    def test_an_absent_server_is_unavailable(self):
        done = run("generate", "--server", "127.0.0.1:1", "--prompt", "Hi")
        self.assertEqual(done.returncode, 1)
        self.assertIn("UNAVAILABLE", done.stderr)
        self.assertEqual(
            run("health", "--server", "127.0.0.1:1").returncode, 1)

    def test_the_same_workload_runs_in_process_and_through_grpc(self):
        done = run("bench", "serve", "--shape", "tiny", "--streams", "2",
                   "--repeats", "1", "--output-tokens", "4",
                   timeout=60 * OPTIONS.slow)
        self.assertEqual(done.returncode, 0, done.stderr)
        # Two streams of four tokens.
        self.assertRegex(done.stdout, r"\n +2 +8 +[0-9.]+ +[0-9.]+ +[0-9.]+%")

    def test_a_benchmark_of_an_unknown_kind_is_refused(self):
        done = run("bench", "linear", "--kinds", "ternary")
        self.assertEqual(done.returncode, 1)
        self.assertIn("ternary", done.stderr)

    def test_print_config_shows_values_and_origins(self):
        config = OPTIONS.work / "good.toml"
        config.write_text('drain-timeout = "7s"\n', encoding="utf-8")
        done = run("serve", str(OPTIONS.model), "--print-config", "--grpc-port",
                   "1234", "--config", str(config),
                   env={"BINARYMOS_HTTP_PORT": "-1"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("grpc-port = 1234  # flag\n", done.stdout)
        self.assertIn("http-port = -1  # environment BINARYMOS_HTTP_PORT\n",
                      done.stdout)
        self.assertIn('drain-timeout = "7s"  # file', done.stdout)
        self.assertIn('host = "127.0.0.1"  # default\n', done.stdout)

    def test_the_manual_lists_every_option(self):
        manual = (pathlib.Path(__file__).resolve().parents[2] / "docs" /
                  "operations.md").read_text(encoding="utf-8")
        done = run("serve", str(OPTIONS.model), "--print-config")
        names = [line.lstrip("# ").split(" = ")[0]
                 for line in done.stdout.splitlines() if " = " in line]
        self.assertGreater(len(names), 30)
        for name in names:
            self.assertIn(f"| `{name}` |", manual)

    def test_help_and_version_exit_with_0(self):
        for arguments in (["--help"], ["serve", "--help"],
                          ["generate", "--help"], ["version"], ["--version"]):
            done = run(*arguments)
            self.assertEqual(done.returncode, 0, arguments)
            self.assertTrue(done.stdout)
        self.assertIn("Network:", run("serve", "--help").stdout)
        self.assertEqual(run().returncode, 2)

    def test_inspect_describes_the_model_as_text_and_json(self):
        text = run("inspect", str(OPTIONS.model))
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertIn("q_proj", text.stdout)
        summary = run("inspect", str(OPTIONS.model), "--json", "--summary")
        self.assertIsInstance(json.loads(summary.stdout), dict)
        self.assertEqual(run("inspect", "/nonexistent").returncode, 1)

    def test_synthesize_does_not_overwrite(self):
        done = run("synthesize", str(OPTIONS.model))
        self.assertEqual(done.returncode, 1)
        self.assertIn("ALREADY_EXISTS", done.stderr)
        self.assert_usage_error("synthesize", "x", "--shape", "huge",
                                words=["huge", "tiny"])

    def test_convert_perplexity_and_verify(self):
        with tempfile.TemporaryDirectory() as folder:
            plain = os.path.join(folder, "plain")
            packed = os.path.join(folder, "packed")
            text = os.path.join(folder, "text")
            pathlib.Path(text).write_text("Once upon a time. " * 40,
                                          encoding="utf-8")
            done = run("synthesize", plain, "--quant-method", "float16")
            self.assertEqual(done.returncode, 0, done.stderr)
            done = run("convert", plain, packed)
            self.assertEqual(done.returncode, 1)
            self.assertIn("--method", done.stderr)
            self.assertFalse(os.path.exists(packed))
            done = run("convert", plain, packed, "--method", "onebit")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("quality needs training", done.stderr)
            self.assertIn("100% after", done.stderr)
            self.assertIn("of anonymous memory", done.stdout)
            self.assertEqual(run("convert", plain, packed, "--method",
                                 "onebit").returncode, 1)
            for model in plain, packed:
                done = run("perplexity", model, text, "--window", "64",
                           "--json")
                self.assertEqual(done.returncode, 0, done.stderr)
                figures = json.loads(done.stdout)
                self.assertEqual(figures["tokens"], 64 * figures["windows"])
                self.assertGreater(figures["perplexity"], 1)
            self.assert_usage_error("perplexity", packed, text, "--stride",
                                    "7", words=["stride"])
            with open(os.path.join(packed, "model.safetensors"),
                      "r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))
            done = run("serve", packed, "--verify", "--grpc-port", "0",
                       "--http-port", "-1")
            self.assertEqual(done.returncode, 1)
            self.assertIn("DATA_LOSS", done.stderr)
            self.assertIn("model.safetensors is damaged", done.stderr)


def hold_streams(count, address):
    """Opens streams, says when all of them stream, and waits to be killed."""
    started = threading.Semaphore(0)

    def stream(index):
        with grpc.insecure_channel(address) as channel:
            call = stubs.InferenceStub(channel).GenerateStream(
                request(f"Long {index}", 1900))
            num_tokens = 0
            for message in call:
                num_tokens += sum(len(d.token_ids) for d in message.deltas)
                if num_tokens >= 3:
                    started.release()
                    break
            for message in call:
                pass

    for index in range(count):
        threading.Thread(target=stream, args=(index,), daemon=True).start()
    for _ in range(count):
        started.acquire()
    print("streaming", flush=True)
    signal.pause()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--proto", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--slow", type=float, default=1.0,
                        help="factor for time limits, for sanitizers")
    parser.add_argument("--hold-streams", type=int, default=0)
    parser.add_argument("--address")
    parser.add_argument("tests", nargs="*")
    parser.parse_args(namespace=OPTIONS)
    OPTIONS.model = OPTIONS.work / "model"

    if OPTIONS.hold_streams:
        sys.path.insert(0, str(OPTIONS.work / "stubs"))
        global pb, stubs
        from binarymos.v1 import inference_pb2, inference_pb2_grpc
        pb, stubs = inference_pb2, inference_pb2_grpc
        hold_streams(OPTIONS.hold_streams, OPTIONS.address)
        return

    shutil.rmtree(OPTIONS.work, ignore_errors=True)
    OPTIONS.work.mkdir(parents=True)
    generate_stubs(OPTIONS.proto, OPTIONS.work / "stubs")
    made = run("synthesize", str(OPTIONS.model), "--shape", "tiny", "--seed",
               "7")
    if made.returncode != 0:
        sys.exit(f"synthesize failed: {made.stderr}")
    unittest.main(argv=[sys.argv[0], *OPTIONS.tests], verbosity=2)


if __name__ == "__main__":
    main()
