"""The names that Unsloth, TRL, PEFT, LLaMA-Factory, Axolotl, ms-swift, torchtune and mlx-lm have for the settings.

load.py refuses them and names the setting to use. Nothing is translated silently: `batch_size`, for example, counts
something else in every trainer.
"""

from __future__ import annotations

from fasttune.console import _

ALIASES = {
    "model.base": "model_name_or_path model_name model_path base_model model_id pretrained_model_name_or_path",
    "model.load_in_4bit": "quantization_bit quant_bits qlora use_4bit load_4bit",
    "model.max_seq_length": "max_length cutoff_len sequence_len max_seq_len seq_len model_max_length block_size",
    "model.revision": "model_revision revision_of_model",
    "model.mirror": "use_hf use_modelscope hub",
    "data.train": "dataset datasets dataset_name dataset_path train_file train_dataset train_data data_path",
    "data.val": "val_size val_set_size split_dataset_ratio val_dataset eval_dataset validation_file val_file test_size",
    "data.system": "default_system system_prompt system_message",
    "data.learn": "train_on_inputs train_on_input train_on_prompt mask_prompt assistant_only_loss completion_only_loss "
    "train_on_completions train_on_responses_only roles_to_train loss_scale",
    "lora.r": "lora_r lora_rank rank",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout lora_dropout_p",
    "lora.target_modules": "lora_target lora_target_modules lora_target_linear lora_modules target_linear",
    "train.epochs": "num_train_epochs num_epochs epoch n_epochs",
    "train.max_steps": "iters max_iters total_steps",
    "train.learning_rate": "lr peak_lr",
    "train.batch_size": "per_device_train_batch_size micro_batch_size train_batch_size gradient_accumulation_steps "
    "gradient_accumulation global_batch_size",
    "train.lr_scheduler_type": "lr_scheduler scheduler scheduler_type lr_schedule",
    "train.warmup_steps": "warmup_ratio warmup num_warmup_steps lr_warmup_steps",
    "train.max_grad_norm": "grad_clip clip_grad_norm max_norm gradient_clip_val",
    "train.optim": "optimizer optimizer_type",
    "train.seed": "random_state random_seed data_seed",
    "train.tokens_per_row": "packing sample_packing neat_packing packed padding_free pad_to_sequence_len",
    "train.gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing grad_checkpoint",
    "train.eval_steps": "eval_strategy evaluation_strategy evals_per_epoch steps_per_eval",
    "train.save_steps": "save_strategy saves_per_epoch save_every steps_per_save",
    "train.early_stopping_patience": "early_stopping early_stopping_steps early_stop_interval",
    "train.report_to": "use_wandb wandb_project logging_dir",
    "continue.parent": "resume_from_checkpoint auto_resume_from_checkpoints adapter_name_or_path resume_adapter_file",
    "continue.add_epochs": "extra_epochs additional_epochs",
    "export.gguf": "quantization_method quantization export_quantization_bit quant save_gguf gguf_quantization",
    "export.ollama": "ollama_name ollama_model",
    "export.num_ctx": "context_length n_ctx ctx_size",
    "export.temperature": "temp",
    "export.repeat_penalty": "repetition_penalty penalty_repeat",
    "export.num_predict": "n_predict",
    "export.keep_merged": "save_method merge_lora save_merged",
    "probe.max_new_tokens": "max_tokens",
}
RENAMED = {alias: key for key, names in ALIASES.items() for alias in names.split()}
TABLE_ALIASES = {
    "model": "base base_model",
    "data": "dataset datasets",
    "lora": "peft qlora adapter lora_parameters",
    "train": "trainer training training_args training_arguments sft",
    "continue": "resume",
    "export": "gguf",
}
RENAMED_TABLES = {alias: table for table, names in TABLE_ALIASES.items() for alias in names.split()}


def notes() -> dict[str, str]:
    """{setting: how its values differ from those of other trainers}."""
    return {
        "train.batch_size": _("it counts the samples of one optimizer step: per-device batch × accumulation × GPUs"),
        "train.warmup_steps": _("a number below 1 is the share of all steps"),
        "train.tokens_per_row": _('rows are packed without padding unless it is 0; "auto" is almost always right'),
        "train.eval_steps": _("0 evaluates once an epoch"),
        "train.save_steps": _("0 saves once an epoch"),
        "data.learn": _('"assistant" trains on the answers only, "all" on every token'),
        "data.val": _("a file, or a fraction such as 0.1"),
        "lora.target_modules": _("left out, all linear layers get an adapter"),
        "continue.parent": _("a stopped run resumes when the same command is run again"),
    }


def without_counterpart() -> dict[str, str]:
    """{another trainer's setting that has none here: why, and what to do}."""
    reasons = {
        _("runs are written to runs/NAME/, or below the folder in --runs or FASTTUNE_RUNS: leave this out"): (
            "output_dir run_name export_dir adapter_path logging_path"
        ),
        _("a run is never overwritten: leave this out"): "overwrite_output_dir",
        _("use load_in_4bit in table [model], or 16 bits without it"): "load_in_8bit",
        _("the precision follows from the machine, or from model.dtype: leave this out"): "bf16 fp16 tf32 torch_dtype",
        _("the model's own chat template is used: leave this out"): "template chat_template dataset_text_field",
        _("put fewer samples into the file of data.train"): "max_samples",
        _("fasttune decides this itself: leave this out"): (
            "flash_attn flash_attention attn_implementation attn_impl use_unsloth enable_liger_kernel use_liger_kernel "
            "stage do_train finetuning_type train_type tuner_type use_peft bias use_rslora loftq_config ddp_timeout "
            "dataloader_num_workers dataset_num_proc preprocessing_num_workers overwrite_cache plot_loss "
            "load_best_model_at_end per_device_eval_batch_size group_by_length"
        ),
    }
    return {name: reason for reason, names in reasons.items() for name in names.split()}
