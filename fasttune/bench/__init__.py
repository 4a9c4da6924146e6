"""`fasttune bench`: stock Unsloth, plain peft and fasttune side by side on the same samples."""
