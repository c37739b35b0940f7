"""ponder's engine in your own training loop: sample groups, score them, update the module, publish it."""

import torch

import ponder

prompts = ["Make 24 from 3 5 7 2.", "Make 30 from 5 6 2."]
with ponder.open_engine("ponder-tiny") as engine:
    module = engine.model.module
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
    for step in range(1, 3):
        groups = ponder.generate(engine, prompts, n=4, max_tokens=32, seed=step)
        for group in groups:
            rewards = torch.tensor([float("=" in c.text) for c in group])
            for completion, advantage in zip(group, rewards - rewards.mean(), strict=True):
                ids = torch.tensor([completion.transcript.ids])
                mask = torch.tensor(completion.transcript.loss_mask)
                logprobs = torch.log_softmax(module.logits(module(ids[:, :-1])), dim=-1)[0]
                chosen = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)[mask[1:]]
                (-advantage * chosen.mean()).backward()
        optimiser.step()
        optimiser.zero_grad()
        ponder.publish(engine, module, version=step)
        print(f"step {step}: weights version {engine.weights_version}, first response {groups[0][0].text[:40]!r}")
