# fasttune from Windows: finds WSL2, says what is missing, and runs docs/quick_start.sh inside it.
#
#   .\train.ps1                     the menu
#   .\train.ps1 linzhi              trains recipes/linzhi.toml
#   .\train.ps1 doctor --quick      any other command of fasttune
#
# The clone is expected in ~/fasttune of the default Linux; another folder below the Linux home: $env:FASTTUNE_CLONE.
# Where Windows refuses scripts: powershell -ExecutionPolicy Bypass -File .\train.ps1

function Stop-With([string]$Problem, [string]$Hint) {
    [Console]::Error.WriteLine("error: $Problem")
    [Console]::Error.WriteLine(" hint: $Hint")
    exit 1
}

$clone = if ($env:FASTTUNE_CLONE) { $env:FASTTUNE_CLONE } else { 'fasttune' }
$env:WSL_UTF8 = '1'  # otherwise wsl.exe writes UTF-16

if (-not (Get-Command wsl.exe -ErrorAction SilentlyContinue)) {
    Stop-With 'WSL2 is not installed' 'in Terminal (Admin): wsl --install   then restart Windows'
}
$kernel = wsl.exe -e uname -r
if ($LASTEXITCODE -ne 0) {
    Stop-With 'no Linux starts in WSL' 'wsl --install -d Ubuntu   or look at: wsl -l -v'
}
if ("$kernel" -notmatch 'WSL2') {
    Stop-With 'the default Linux runs in WSL 1, which has no GPU' 'wsl --set-version Ubuntu 2'
}
wsl.exe --cd '~' -e test -f "$clone/docs/quick_start.sh"
if ($LASTEXITCODE -ne 0) {
    Stop-With "there is no clone of fasttune in ~/$clone" 'in Ubuntu: cd ~ && git clone ADDRESS fasttune   (docs/wsl2.md, step 5)'
}
wsl.exe --cd '~' -e sh "$clone/docs/quick_start.sh" @args
exit $LASTEXITCODE
