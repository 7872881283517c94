export const common = {
  "common.retry": "Try again",
  "common.cancel": "Cancel",
  "common.close": "Close",
  "common.slots": "{count} slot",
  "common.slots#other": "{count} slots",
  "common.copied": "Copied",
  "common.notCopied": "The browser did not allow copying.",
  "common.unreachable": "Canopy cannot be reached. Check that it is running, then try again.",
  "common.wrong": "Something went wrong.",
};
